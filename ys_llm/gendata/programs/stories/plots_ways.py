"""Plots of the road: a lost child, a delivery, greed, a snowman, a treasure map."""

from ys_llm.gendata.programs.stories.plot import Plot
from ys_llm.gendata.programs.stories.stage import Stage
from ys_llm.gendata.programs.words import FOODS

YOUNG = (
    ("duckling", "a nest of reeds", "It smells of water where I live", "the pond",
     "the mother duck"),
    ("kitten", "a basket", "There is always a smell of bread", "the bakery", "the old cat"),
    ("lamb", "soft straw", "There is a bell that rings", "the sheepfold", "the flock"),
    ("owlet", "a hole in a tree", "One can see the whole forest", "the tallest oak",
     "two sleepy owls"),
    ("fawn", "ferns", "The grass is so high that I can hide", "the clearing", "a gentle doe"),
    ("puppy", "an old coat", "It is warm, and somebody plays the fiddle", "the inn",
     "the old fiddler"),
    ("bee", "a room of wax", "There are a thousand of us", "the beehives", "a thousand bees"),
)  # fmt: skip
WRONG_GUESSES = ("the mill", "the church", "the big barn", "the rabbit field", "the old tower",
                 "the blacksmith's house", "the market")  # fmt: skip


def prepare_little_one(stage: Stage) -> None:
    """A lost little animal gives one clue; a first guess is wrong; the clue leads home."""
    young, bed, clue, home, family = stage.pick(YOUNG)
    stage.friend("b")
    stage.fill(young=young, bed=bed, clue=clue, home=home, kin=family)
    stage.fill(wrong=stage.pick(WRONG_GUESSES), spot=stage.spots(1)[0])


LITTLE_ONE = Plot(
    "little one",
    "helping somebody small",
    "finds a lost {young}",
    """
{opening}

[{one day}, {a} and {b.new} heard somebody crying.|{a} was out with {b.new}. "Listen," said {a}.
  "Somebody is crying."]
[They looked about, and {spot} sat a little {young}.|{spot}, all alone, sat a {young}.]
["Why are you crying?" asked {a}.|{a} knelt down. "What is the matter, little one?"]
["I want to go home," said the {young}, "and I do not know where it is."|"I followed a butterfly,"
  said the {young}, "and now I am lost."]
["Do not cry," said {a}. "We will find it."|"Then we shall take you home," said {b}.]

["What does it look like at home?" asked {b}.|"Tell us about your home," said {b}.]
["I sleep in {bed}," said the {young}. |The {young} thought hard. "At night I sleep in {bed}."]
[They tried {wrong} first, but nobody there knew the {young}. |"That must be {wrong}!" said {b}.
  But when they got there, the {young} shook its head.]
[The {young} began to cry again.|"Not here," it said, and its lip trembled.]
[{a} carried it for a while.|{a} gave it a bite of bread.|"Think again," said {a} softly.]
["Is there anything else that you remember?" asked {a}.|"What else?" asked {b}. "A sound? A
  smell?"] "{clue}," said the {young}.
[{a} looked at {b}, and {b} looked at {a}. "{home}!" they said at the same time.|{a} jumped up. "I
  know! It is {home}!"]

[They {walked} as fast as the little {young} could.|The {young} rode the last part on {b}'s back.]
[And there, at {home}, stood {kin}, calling and calling.|They were not even halfway when they
  heard somebody calling. It was {kin}.]
["There you are!"|What a welcome that was!]
[The {young} disappeared in a heap of hugs.|The {young} laughed and cried at the same time.]
["How can we thank you?" asked {kin}.|They wanted to give {a} a gift.]
["You just did," said {a}.|But {a} shook {a.his} head. It was enough to see the {young}
  smile.|"Next time," said {a} to the {young}, "follow the butterfly only as far as you can see
  your door."]
[{b} was quiet on the way back. "I am glad that we heard it," {b.he} said.|The {young} waved until
  they were out of sight.] {closing}
""",
    prepare_little_one,
)

PARCELS = (
    ("a jar of soup", "had a cold"),
    ("a warm blanket", "lived where the snow comes early"),
    ("a new pair of glasses", "could not read the newspaper"),
    ("a birthday cake", "was a hundred years old that day"),
    ("a bag of seeds", "wanted to plant a garden"),
    ("a letter from the sea", "had waited for it all year"),
    ("a basket of eggs", "wanted to bake for the feast"),
    ("a bottle of medicine", "had been coughing for a week"),
)
RECEIVERS = ("the old lighthouse keeper", "the old shepherd", "the ferryman", "the tailor",
             "the clockmaker", "the bell ringer", "the beekeeper")  # fmt: skip
OBSTACLES = (
    ("the bridge was gone", "made a raft from two logs", "they drifted across, a little wet"),
    ("a fallen tree lay across the road", "crept under it on all fours",
     "only {a.his} hat got stuck"),
    ("a goose stood in the road and hissed", "bowed and asked for permission",
     "the goose stepped aside, for nobody had ever asked it before"),
    ("fog hid the road", "followed the sound of the church bell",
     "step by step the road came back"),
    ("the hill was as steep as a wall", "walked in zigzags", "that took longer, but it worked"),
    ("the road split into three, and there was no sign",
     "chose the one with the freshest footprints", "it was the right one"),
    ("the wind blew straight into their faces", "walked backwards, arm in arm",
     "the wind gave up first"),
)  # fmt: skip


def prepare_delivery(stage: Stage) -> None:
    """A parcel must reach somebody far away; two obstacles stand in the way."""
    parcel, reason = stage.pick(PARCELS)
    one, two = stage.rng.sample(OBSTACLES, 2)
    stage.friend("b")
    stage.fill(parcel_the="the " + parcel.split(" ", 1)[1])
    stage.fill(parcel=parcel, reason=reason, receiver=stage.pick(RECEIVERS))
    stage.fill(trouble_one=one[0], way_one=one[1], end_one=one[2])
    stage.fill(trouble_two=two[0], way_two=two[1], end_two=two[2], food=stage.pick(FOODS))


DELIVERY = Plot(
    "delivery",
    "keeping a promise",
    "has to carry {parcel} to {receiver}",
    """
{opening}

["Who will carry this to {receiver}?" asked {a}'s mother. It was {parcel}.|There was {parcel} to
  be brought to {receiver}, and the road was long.]
[{receiver} {reason}.|It was needed badly, because {receiver} {reason}.]
["I will," said {a}. "I promise."|"You can trust me," said {a}.|{a} put {parcel.the} into {a.his}
  bag. "I will be there before dark," {a.he} said.]
["Then I am coming too," said {b.plain}.|On the way {a.he} met {b.new}, and they went on
  together.]

[At first it was easy.|They {walked} along and talked about this and that.] But
[soon|after an hour] {trouble.one}.
["What now?" asked {b}.|"We cannot go on," said {b}.|{b} sat down. "That is the end of it."]
["I promised," said {a}. |"There is always a way," said {a}.] So they {way.one}, and {end.one}.
[They had hardly caught their breath when the next thing happened: {trouble.two}.|"That was the
  worst of it," said {b}. But it was not, for {trouble.two}.]
[This time it was {b} who had the idea.|"Let me think," said {b}.|They looked at each other and
  laughed, because what else could they do?] They {way.two}, and {end.two}.
[The sun was already low.|{a} felt for the parcel again and again. It was safe.|]

[When the first star came out, they knocked at the door.|At last they saw a light.]
[{receiver} opened the door and could hardly believe it. "You came all this way?"|"I thought that
  nobody would come today," said {receiver}.]
["A promise is a promise," said {a}, and held out {parcel.the}.|{a} held out {parcel.the}. It was
  a little dusty, but whole.]
[They were given {food} and two chairs by the fire.|They stayed for supper and ate {food}.]
["Was it a hard road?" asked {receiver}. "Only in the middle," said {b}.|{receiver} told them
  stories until their eyes closed.|They slept in front of the stove and walked home in the
  morning, and the way back was only half as long.]
""",
    prepare_delivery,
)

TREASURES = (
    ("nuts", "the big hazel tree", "basket", "the handle broke, and all of them rolled away"),
    ("cherries", "the cherry tree", "hat", "the hat burst, and the cherries were squashed"),
    ("shells", "the long beach", "sack", "the sack tore, and the tide took them back"),
    ("mushrooms", "the mossy slope", "wagon", "the wagon tipped over into the stream"),
    ("apples", "the apple tree", "cart", "the cart rolled down the hill and into the pond"),
    ("berries", "the berry bushes", "bucket", "the bottom of the bucket fell out"),
    ("chestnuts", "the chestnut tree", "apron", "the string broke, and they bounced down the hill"),
)  # fmt: skip


def prepare_greed(stage: Stage) -> None:
    """{a} takes all of it and loses all of it; {b} has little and shares it."""
    stage.avoid("kind", "gentle", "polite", "thoughtful")
    treasure, source, holder, loss = stage.pick(TREASURES)
    stage.friend("b")
    stage.fill(treasure=treasure, source=source, holder=holder, loss=loss)
    stage.fill(few=stage.pick(("six", "eight", "ten", "twelve")))


GREED = Plot(
    "greed",
    "taking only what you need",
    "wants all the {treasure}",
    """
{opening}

[{one day}, {a} came to {source}.|Everybody knew {source}, and one {part} {a} got there first.]
  There were more {treasure} than
[anyone could count|{a} had ever seen].
["All mine!" said {a}.|"If I take them all," thought {a}, "I shall have enough for ever."]
[{a} filled the {holder} to the brim.|The {holder} was full, and {a} pressed in some more.]

[Then {b.new} came along.|{b.new} came with a small bag.]
["May I have a few?" {b.he} asked.|"Are there any left?" asked {b}.]
["I was here first," said {a}.|"No," said {a}. "I need every one of them."|{a} held the {holder}
  tight and said nothing.]
[{b} looked at the {holder}. "That is too heavy," {b.he} said.|"Be careful," said {b}. "That
  {holder} is old."]
["I can manage," said {a}.|"You are only jealous," said {a}.]
[So {b} picked up what {a} had dropped, and that was {few}.|{b} found {few} {treasure} in the
  grass and was content.]

[{a} set off for home. Every few steps {a.he} had to rest.|{a} puffed and groaned, and would not
  put anything down.]
[Then there was a crack:|And then it happened:] {loss}.
[Not one was left.|{a} stood there with nothing at all.|In a moment everything was gone.]
["My {treasure}!" wailed {a}.|{a} sat down in the road and covered {a.his} face.]
[{a} heard steps. It was {b}.|After a while somebody sat down next to {a}. It was {b}.]
[{b} could have laughed, but {b.he} did not.|"You were right," said {a}. "Now you may laugh." But
  {b} did not laugh.] {b} counted. "[I have {few}|There are {few}]. That is half for you and half
  for me."
["Why do you share with me?" asked {a}. "Because they taste better that way," said {b}.|"After I
  gave you nothing?" asked {a}. "That was then," said {b}.]
[{a} was ashamed, and thankful too.|{a} had never had so few {treasure}, and never enjoyed them so
  much.]

[The next year, {a} came to {source} again, took one {holder} that was half full, and called all
  the others.|After that, {a} always left enough for those who came later.|"Enough is enough," {a}
  liked to say from then on, and everybody wondered where {a.he} had learned it.] {closing}
""",
    prepare_greed,
)

NOSES = (("a carrot", "a hungry rabbit"), ("a pine cone", "a squirrel"), ("an apple", "a deer"),
         ("a potato", "a hungry mouse"), ("a big red pepper", "a crow"))  # fmt: skip
CROWNS = ("an old hat", "a flower pot", "a bucket", "a crown of twigs", "a tin pan")


def prepare_snow(stage: Stage) -> None:
    """A snowman's nose is eaten; the thief was hungry; a better nose is found."""
    nose, thief = stage.pick(NOSES)
    new_nose = stage.pick([other for other, _ in NOSES if other != nose])
    stage.friend("b")
    stage.fill(nose=nose, thief=thief, thief_short="the " + thief.split()[-1], new_nose=new_nose)
    stage.fill(crown=stage.pick(CROWNS), food=stage.pick(FOODS))


SNOW = Plot(
    "snow",
    "a snowman",
    "builds a snowman",
    """
[In the night it had snowed, and {place} was white.|It was the first snow of the year.|When {a}
  opened the door, the whole world was white.]
[{a}, {a.full}, ran out {at once}.|{a.named} could not stay inside.]
[{habit}|]
["Let us build a snowman!" said {a} to {b.new}.|{b.new} was already outside. "Shall we build a
  snowman?" asked {b}.]
[They rolled a big ball, a middle ball and a small one.|They rolled and pushed until their
  {a.hands} tingled.]
[It got two stones for eyes, {nose} for a nose and {crown} for a hat.|For the nose they took
  {nose}, and on its head they put {crown}.]
["He looks like my uncle," said {b}.|"He is a little crooked," said {a}. "So is my grandfather,"
  said {b}, "and everybody loves him."|They gave it a name, and the name was Sir Cold.]

[But the next morning, the nose was gone!|When they came back after lunch, something was missing.
  It was the nose!]
["A thief!" cried {a}.|"Who would steal a nose?" asked {b}.]
[There were small tracks in the snow.|{a} looked closely. "Tracks," {a.he} said.]
[They followed the tracks around the corner and under a hedge.|The tracks went in circles, and
  then under a bush.] There sat {thief}, with
[the last crumb|its mouth full].
["You have eaten his nose!" said {a}.|"That was his nose," said {b} sternly.]
[{thief.short} began to tremble. "I did not know," it said. "There is nothing else to eat in the
  snow."|"I am sorry," said {thief.short}. "I was so hungry."]
[{a} looked at its thin sides, and was not angry any more.|{a} and {b} were silent. It was a very
  good reason.]

[{a} ran home and came back with {food}.|"Wait here," said {b}, and fetched {food}.]
[{thief.short} ate until it was round. |{thief.short} ate, and its whiskers danced.]
["And what about the nose?" asked {b}.|"But he still has no nose," said {a}.]
[{thief.short} ran off and came back with {new.nose}.|They looked for a new one and found
  {new.nose}.]
[It was even better than the old one. |Now the snowman had the finest nose in the land.]
[All winter long, something to eat lay at the snowman's feet.|From that day on, they came every
  {part} with something to eat, and nobody stole a nose again.|And when spring came and the
  snowman was gone, the three of them were still friends.]
""",
    prepare_snow,
)

PLOTS = (LITTLE_ONE, DELIVERY, GREED, SNOW)
