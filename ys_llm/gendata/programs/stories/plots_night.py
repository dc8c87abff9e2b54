"""Plots of the evening and the sky: a noise, a sleepless night, a storm, a wish, a snowman."""

from ys_llm.gendata.programs.stories.plot import Plot
from ys_llm.gendata.programs.stories.stage import Stage
from ys_llm.gendata.programs.words import FOODS

NOISES = (
    ("tap, tap, tap", "a branch that the wind was knocking against the wall",
     "tied the branch back with a string"),
    ("scratch, scratch", "a very small kitten that wanted to come in",
     "gave the kitten a saucer of milk"),
    ("hoo, hoo", "an old bottle, and the wind was blowing over the top of it",
     "put a cork into the bottle"),
    ("drip, drop, drip", "the rain barrel, which had a leak", "put a bucket under the leak"),
    ("crunch, crunch", "a hedgehog that was eating a fallen apple",
     "brought the hedgehog another apple"),
    ("squeak, squeak", "the garden gate, which nobody had closed", "closed the gate"),
    ("flap, flap", "a shirt that somebody had left on the line", "took the shirt inside"),
    ("rattle, rattle", "a mouse that was rolling a walnut home",
     "carried the walnut for the mouse"),
    ("bump, bump", "a little goat that had lost its mother", "took the little goat home"),
)  # fmt: skip
GUESSES = (
    "a giant with wooden shoes", "a dragon with a cold", "a bear in boots", "a robber with a sack",
    "a ghost who cannot find the door", "a wolf that is learning to dance", "a troll",
)  # fmt: skip


def prepare_noise(stage: Stage) -> None:
    """A noise in the night, two wild guesses, and the small truth."""
    noise, truth, deed = stage.pick(NOISES)
    stage.friend("b")
    first, second = stage.rng.sample(GUESSES, 2)
    stage.fill(noise_cap=noise.capitalize())
    stage.fill(noise=noise, truth=truth, deed=deed, guess_one=first, guess_two=second)
    tool = stage.pick(("lantern", "lamp", "candle"))
    stage.fill(tool=tool, food=stage.pick(FOODS))


NOISE = Plot(
    "noise",
    "a strange noise in the night",
    "hears a strange noise in the night",
    """
[It was late, and {a.named} could not sleep.|One night, {a}, {a.full}, woke up with a start.|The
  moon was high, and {a} lay in bed. {habit} But tonight something was different.]
[Something outside went {noise}.|Then {a.he} heard it: {noise}.]
[It stopped. It began again.|{a} pulled the blanket up to {a.his} nose.|"Who is there?"
  [whispered|asked] {a}. Nobody answered.]

[{b.new} was staying for the night.|In the other bed lay {b.plain}.]
["Are you awake?" whispered {a}. "I am now," said {b}.|{a} woke {b.him} up. "Listen!"]
  "{noise.cap}," it went.
["That is {guess.one}," said {a}. "Or {guess.two}," said {b}.|"Perhaps it is {guess.one},"
  whispered {b}. "It sounds more like {guess.two}," said {a}.]
[They both shivered.|The more they guessed, the bigger it became. |They held on to each other.]
["We could stay here and be afraid," said {a}, "or we could go and look."|"I would rather know
  than guess," said {b}.]
[{a} lit the {tool}.|They took the {tool}.]
[Step by step, they went outside.|Very slowly, they opened the door.|On the tips of their toes,
  they went out into the night.]

[The noise came closer.|"{noise.cap}," went the noise, right in front of them.] {a} held up the
  {tool}. And what was it? It was {truth}!
[They looked at each other and began to laugh.|{a} laughed out loud.|"So that is our giant," said
  {b}, and they laughed until they had to sit down.] Then {a} {deed}.
[It was quiet now.|The night was still and full of stars.]
["I was not really afraid," said {b}. "I was," said {a}, "but less and less with every
  step."|"Most giants are small when you hold a light up to them," said {a}.|"I am almost sorry
  that it was not {guess.one}," said {b}.]
[They went back to bed and slept until noon.|In the morning they told everybody, and in the story
  the noise was much louder.|Soon there was only one sound left, and that was {b}, who snored.]
""",
    prepare_noise,
)

REMEDIES = (
    ("counted sheep", "at ninety-nine the sheep began to dance"),
    ("drank a cup of warm milk", "then {a.he} {a.was} warm and still awake"),
    ("turned the pillow over", "the other side was no better"),
    ("hummed a song", "it had too many verses"),
    ("lay on one side, and then on the other", "both of them were the wrong side"),
    ("closed {a.his} eyes very tightly", "behind them it was as bright as day"),
    ("counted the beams of the ceiling", "there were only seven"),
)
REASONS = (
    ("tomorrow was {a.his} birthday", "What if nobody comes?", "Then I will come twice"),
    ("it was the first night in a new home", "The walls sound different here.",
     "They only say good night in another way"),
    ("{a} had quarrelled with a friend", "What if we are not friends any more?",
     "Tomorrow you can say sorry, and I will go with you"),
    ("there would be a long journey in the morning", "What if I get lost?",
     "You know the way here, so you know the way back"),
    ("{a} had seen too many shadows", "There is one behind the door.",
     "That is your own coat, and it is tired as well"),
    ("{a.his} head was full of questions", "Where does the sun go at night?",
     "It goes round to wake up the others"),
)  # fmt: skip


def prepare_sleepless(stage: Stage) -> None:
    """{a} cannot sleep for a reason; remedies fail, and talking helps."""
    reason, worry, comfort = stage.pick(REASONS)
    if stage.family == "children":
        stage.adult("b")
    else:
        stage.friend("b")
    (one, fails_one), (two, fails_two) = stage.rng.sample(REMEDIES, 2)
    stage.fill(reason=reason, worry=worry, comfort_words=comfort, one=one, fails_one=fails_one)
    stage.fill(two=two, fails_two=fails_two, food=stage.pick(FOODS))


SLEEPLESS = Plot(
    "sleepless",
    "going to sleep",
    "cannot fall asleep",
    """
[Outside it was dark, and all the lamps were out. Only {a}, {a.full}, was awake.|The stars stood
  over {place}. In {a.his} bed lay {a.named}, wide awake.|{a}, {a.full}, could not sleep.]
[It was because {reason}. |{reason}, and {a.he} could think of nothing else.]
[{a} {one}, but {fails.one}.|First {a} {one}. {fails.one}.]
[Then {a.he} {two}, but {fails.two}.|After that, {a.he} {two}. {fails.two}.]
[The clock struck ten, and then eleven.|An owl called, and another one answered. |The night was as
  long as a winter.]

[At last {a} got up and went to find {b.new}.|{b.new} heard the bed creak and came to look.|There
  was a knock, and in came {b.new}.]
["Can you not sleep?" asked {b}.|"Still awake?" asked {b}.|"I saw your light," said {b}.] {a}
[shook {a.his} head|sighed].
[{a} looked at the floor. "{worry}"|"I keep thinking," said {a}. "{worry}"] {b}
[sat down on the edge of the bed|made room for {a} under a warm blanket|opened the window a
  little].
["{comfort.words}," said {b}.|{b} did not laugh. "{comfort.words}."]
[{a} thought about that. It was a good answer.|"Really?" asked {a}. "Really," said {b}.|Something
  heavy slid from {a}'s heart.]
[Then they listened to the night together: the wind, the leaves, and a train far away.|Then {b}
  told a story in which nothing happened, very slowly.|Then they looked at the moon until it had
  moved to the next window.]

["Are you asleep?" asked {b} after a while. There was no answer.|"And then," said {b}. But {a} was
  already asleep.|When {b} looked again, {a}'s eyes were closed.]
[{b} tiptoed out and left the door open, just a little. |{b} pulled up the blanket and blew out
  the light.|And because it was so quiet, {b} fell asleep too.]
[In the morning, {a} could not even remember what had been so bad.|The next day was bright, and it
  was a good one.|And the sun came back, just as it always does.]
""",
    prepare_sleepless,
)

GUESTS = ("a wet mouse", "an old frog with a suitcase", "two shivering sparrows", "a rabbit",
          "a beetle with a tiny umbrella", "a tired goose", "a lost lamb")  # fmt: skip
SHELTERS = ("a little tent", "a hut made of branches", "the old barn", "a cave in the rock",
            "a tree house", "an empty wagon", "the garden shed")  # fmt: skip


def prepare_storm(stage: Stage) -> None:
    """A storm; a small shelter; one guest after another; there is always room for one more."""
    stage.friend("b")
    first, second, third = stage.rng.sample(GUESTS, 3)
    stage.fill(first=first, second=second, third=third, food=stage.pick(FOODS))
    stage.fill(shelter=stage.pick(SHELTERS))


STORM = Plot(
    "storm",
    "making room for others",
    "waits for the end of a storm",
    """
{opening}

[But then the sky grew dark.|Nobody had seen the clouds come.|First there was one drop, then there
  were a hundred.]
[{a} ran as fast as {a.he} could, and found {shelter}.|There was only one dry place, and that was
  {shelter}. {a} crept inside.]
[It was small, but it was dry.|It was just big enough for one.]
[The rain drummed on the roof.|Outside, the thunder rolled.|Lightning flashed, and {a} counted to
  five before the thunder came.]

There was a knock. It was {b.new},
[dripping wet|wet from top to toe].
["Is there room for me?" {b.he} asked. |"May I come in?" asked {b}.]
[{a} had just made {a.himself} comfortable, but {a.he} moved over.|"There is not much," said {a},
  "but come in."|"If we sit close together," said {a}.]
[Then came {first}, and after that {second}.|Soon there was another knock. It was {first}. "Me
  too, please?" And behind came {second}.]
["Now it is full," said {b}.|Nobody could stretch out a leg any more.|It was tight, but it was
  warm.]
[And still there was somebody at the door. It was {third}.|The last one to come was {third}.]
["There is no more room!" said {b}. But {a} looked at the rain. "Then we all breathe in," said
  {a}.|Everybody looked at {a}. "One more," said {a}. "There is always room for one more."]

So they sat, shoulder to shoulder, and
[told stories|sang against the thunder|listened to the storm].
[{b} had {food} in {b.his} bag, and everyone got a bite.|Somebody knew a joke, and then somebody
  knew a better one. |With so many of them, nobody was cold.]
[At last the rain grew thin and stopped.|Suddenly it was still.]
[They crept out, one after another, and there was a rainbow over {place}.|Outside, every leaf was
  shining, and the sun was back.]
["I thought my place was too small," said {a}, "but it was just the right size."|"Without you, we
  would have been very wet," said {b}. The others nodded.|It had been the worst storm of the year,
  and the best {part}.] {closing}
""",
    prepare_storm,
)

WISH_GIVERS = (
    ("a golden fish in a net", "set the fish free"),
    ("a bee that had fallen into the water", "lifted the bee out with a leaf"),
    ("a tiny star that had fallen from the sky", "warmed the star in both {a.hands}"),
    ("an old bottle with a spirit in it", "pulled out the cork"),
    ("a snail on the hot road", "carried the snail into the shade"),
    ("a bird with a thread around its leg", "untied the thread"),
)
WISHES = (
    ("could not walk after a fall", "that {b} could run again", "jumped up and ran in circles"),
    ("had lost {b.his} voice", "that {b} could sing again",
     "opened {b.his} mouth, and out came a song"),
    ("had been ill all winter", "that {b} would be well",
     "threw off the blanket and asked for soup"),
    ("had lost all {b.his} seeds in the flood", "that {b} could plant again",
     "found a full bag of seeds at the door"),
    ("had not seen {b.his} sister for years", "that {b}'s sister would come home",
     "heard a knock, and there the sister stood"),
)  # fmt: skip


def prepare_wish(stage: Stage) -> None:
    """A kind deed earns one wish, and {a} gives it away."""
    giver, deed = stage.pick(WISH_GIVERS)
    trouble, wish, result = stage.pick(WISHES)
    stage.friend("b")
    own = stage.pick(("a kite as big as a house", "a mountain of cake", "wings", "a golden crown",
                      "a boat with red sails", "a coat that never gets wet"))  # fmt: skip
    stage.fill(giver=giver, deed=deed, trouble=trouble, wish=wish, result=result, own=own)
    stage.fill(creature=giver.split()[2] if giver.split()[0] == "a" else "spirit")
    if giver.split()[1] in ("bee", "snail", "bird"):
        stage.fill(creature=giver.split()[1])


WISH = Plot(
    "wish",
    "a wish",
    "is given one wish",
    """
{opening}

{one day}, {a} found {giver}.
[{a} did not think twice and {deed}.|"You poor thing," said {a}, and {deed}. |Others had walked
  past, but {a} stopped and {deed}.]
[Then the {creature} spoke!|And then something strange happened: the {creature} began to speak.]
  "[You were kind to me|You have helped me], and so you may have one wish.
[Only one, so think well|Choose with care]."
[{a} was so surprised that {a.he} sat down.|{a} rubbed {a.his} eyes. It was no dream.] A wish!
["I could wish for {own}," thought {a}.|First {a} thought of {own}.]
[It would be wonderful.|Everybody would stare.|]

[But on the way home {a} passed the house of {b.plain}.|Then {a} thought of {b.plain}.] {b}
  {trouble}.
[{b} never complained, but {b.his} eyes were sad.|{a} visited {b} every day.|It made {a} sad to
  think of it.]
[{a} walked up and down for a long time.|All {part}, {a} thought of nothing else.|It was not an
  easy choice.]
[At last {a} said, "I know what I want. I wish {wish}."|"I wish," said {a} slowly, "{wish}."]
["Is that all? Nothing for you?" asked the {creature}. "That is for me, too," said {a}.|"A good
  wish," said the {creature}.]
[There was a soft sound, like a bell.|A warm wind blew, and the {creature} was gone.]

[The next morning, {b} {result}.|And at that very moment, {b} {result}.]
["How can that be?" cried {b}.|Nobody could explain it.|"It is a wonder!" said {b}.]
[{a} only {smiled}, and said nothing.|{a} told nobody, and was happy. |"Sometimes wishes come
  true," said {a}.]
[{a} never did get {own}. But {a} did not miss it.|And when {a} saw {b} laugh, {a.he} knew that it
  was the best wish of all.|It had been a good trade.] {closing}
""",
    prepare_wish,
)

PLOTS = (NOISE, SLEEPLESS, STORM, WISH)
