"""Phrases that every plot may use: openings, moods, meetings, thanks and endings."""

PHRASES = {
    "animal lives": "[lived in a [cosy|small|tidy|dry] {a.home} [near|close to|not far from]"
    " {place}|had a [little|warm|snug] {a.home} near {place}]",
    "child lives": "[lived in a [small|yellow|tall|white|little brick] house [near|not far from]"
    " {place}|lived [at the end of a long street|next to the bakery|on a hill|above a toy shop]]",
    "tale": "[Once upon a time|Once|Long ago|Not long ago], [there was {a.full} [named|called] {a}"
    "|{a.full} [named|called] {a} {lives}]. [{habit}|]",
    "day": "It was a {weather} {part} {at}. [{sight}|{air}.|{air}. {sight}] "
    "[{a.named}|{a}, {a.full},|{a.full} [named|called] {a}] "
    "[was out and about|had been up since sunrise|was in a good mood|had nothing to do]. "
    "[{habit}|]",
    "plain": "[{a} was {a.full}. {habit}|{a.named} {lives}. {habit}"
    "|Everybody {at} knew {a}, {a.full}. {habit}]",
    "some day": "[One|On a] {weather} {part}",
    "same day": "[That {part}|After a while|A little later]",
    "oh no": "[Oh no|Oh dear|Dear me]",
    "sad": "[sad|unhappy|very sad|close to tears]",
    "said sadly": "[said {a} sadly|sighed {a}|said {a} in a small voice|answered {a}]",
    "happy": "[happy|glad|so happy|full of joy]",
    "smiled": "[smiled|grinned|laughed|beamed]",
    "at once": "[at once|right away|without waiting|straight away]",
    "meets": "[Just then|At that moment|A little later|After a while|Before long], "
    "{b.new} [came by|came along|came around the corner|appeared on the path|happened to pass]. ",
    "asks": '"[What is the matter|What is wrong|What happened|Why do you look so worried]?" '
    "[asked {b}|{b.he} asked].",
    "thinks": "[{b} thought for a moment|{b} scratched {b.his} head|{b} tilted {b.his} head"
    "|{b} nodded slowly|{b} sat down to think]",
    "thanks": '[{a} hugged {b}. "[Thank you|Thank you so much|I could not have done it without you]'
    '!"|"Thank you, {b}," said {a}. "[You are a true friend|That was kind of you|You are the best]'
    '."|{a} thanked {b} [again and again|with all {a.his} heart|three times].'
    '|"[How can I ever thank you?|What would I do without you?]" asked {a}. '
    '"[You just did|You would do the same for me|There is no need]," said {b}.]',
    "snack": "[Then they sat down together and [ate|shared] {food}."
    "|To celebrate, they shared {food}."
    "|{b} had brought {food}, and they ate every crumb."
    "|{a} knew where to find {food}, enough for two.|]",
    "closing": "[{homeward}|{homeward}|{night}|{night}|{after}|{after}|{sky}|]",
    "homeward": "[On the way home|As they walked home|All the way home], they "
    "[sang a [silly|loud|new|very old] song|told each other riddles|counted the first stars"
    "|walked slowly, because the day had been so good|talked about everything once more"
    "|said nothing, because nothing needed to be said|laughed about every little thing"
    "|took turns telling the story, and each time it grew a little"
    "|made plans for [the next day|the whole summer|the day after]].",
    "night": "[That night|That evening|When the stars came out|Late that evening], {a} "
    "[fell asleep with a smile|lay in bed and thought of {b}|slept [deeply|well|like a stone]"
    "|dreamed of [the whole adventure|tomorrow|the things still to come|flying over {place}]"
    "|looked out at the moon and was content|told the moon all about it"
    "|wrote it all down, so that nothing would be lost].",
    "after": "[{a} and {b} [have been|stayed] [the best of friends|good friends] ever since."
    "|{a} never forgot that {part}.|From then on, {a} and {b} [met|saw each other] every day."
    "|And if you [pass|go] by {place}, you may see the two of them together."
    "|They still talk about it when [it rains|the evenings are long|they meet]."
    "|To this day, {a} smiles whenever somebody [says the name of|speaks of] {b}."
    "|Whenever {b} needs a friend, {a} is there first."
    "|The two of them are still together, and they still [laugh|argue about who was right].]",
    "sky": "[The sun went down behind {place}, and the day was over."
    "|Slowly it grew dark, and one window after another lit up."
    "|Above {place}, the first star came out.|A soft wind went over {place}, and all was well."
    "|The evening was [warm|calm|golden], and nobody wanted to go home.]",
    "walked": "[walked|went|hurried|wandered|trotted]",
}
