"""Plots about making and learning: a present, a cake, a skill, a seed, greed."""

from ys_llm.gendata.programs.stories.plot import Plot
from ys_llm.gendata.programs.stories.stage import Stage

# What the present is, what is missing, who has it, what that one wants for it.
PRESENTS = (
    ("necklace of shells", "a strong thread", "the spider", "a song to work by",
     "{a} sang three songs, and the spider nodded its head in time"),
    ("honey cake", "a pot of honey", "the bees", "the way to a field of clover",
     "{a} showed the bees the clover on the other side of the hill"),
    ("wooden flute", "a sharp knife", "the old miller", "a sack carried up the stairs",
     "{a} carried the sack up all the stairs without stopping"),
    ("warm scarf", "a ball of wool", "the sheep", "a good scratch behind the ears",
     "{a} scratched the sheep until it closed its eyes"),
    ("painted picture", "a pot of blue paint", "the boat builder", "clean brushes",
     "{a} washed every brush until the water stayed clear"),
    ("soft pillow", "a bag of feathers", "the goose", "a hole mended in the roof",
     "{a} mended the hole, and the goose did not even have to ask twice"),
    ("paper lantern", "a candle", "the night watchman", "somebody to talk to",
     "{a} sat with the night watchman for an hour and listened to one story after another"),
    ("bouquet of roses", "one red rose", "the gardener", "the weeds pulled out",
     "{a} pulled out every weed between the roses"),
)  # fmt: skip


def prepare_present(stage: Stage) -> None:
    """A present lacks one thing; it has to be earned from somebody who has it."""
    present, missing, owner, price, deed = stage.pick(PRESENTS)
    stage.friend("b")
    stage.fill(missing_the="the " + missing.split(" ", 1)[1])
    stage.fill(present=present, missing=missing, owner=owner, price=price, deed=deed)
    stage.fill(last=present.partition(" of ")[0].split()[-1])


PRESENT = Plot(
    "present",
    "making a present",
    "makes a {present} for a friend",
    """
{opening}

[Tomorrow was the birthday of {b.new}.|The next day was the birthday of {b.plain}.|{a}'s best
  friend was
  {b.plain}, and {b}'s birthday was coming.]
["What could I give {b.him}?" thought {a}.|{a} had no money, but {a.he} had two {a.hands} and an
  idea.|{a} wanted to give something that nobody else could give.]
["I will make a {present}," {a.he} said.|A {present}! That was it.]
[Everything was ready, except for one thing: {a} needed {missing}.|{a} began {at once}. But soon
  {a.he} saw that {missing} was missing.]

[Who had {missing}? Only {owner}.|Everybody said, "Ask {owner}."] So {a}
[{walked} there|set off] and
[asked politely|knocked three times].
["{missing}?" said {owner}. "Yes, I have that. But first I want {price}." |"You can have
  {missing}," said {owner}, "if I get {price}."]
["That is fair," said {a}.|{a} nodded and rolled up {a.his} sleeves.|"Is that all?" asked {a}.
  "That is all."] {deed}.
[It took longer than {a} had thought.|By then the sun was low.|It was not even hard work.]
["Here you are," said {owner}. "A promise is a promise."|Then {owner} gave {a} {missing}, and a
  smile as well.]

[{a} worked until late at night.|At home {a} worked by the light of one lamp.]
[It was a little crooked, but it was made with love.|It did not turn out quite as planned, but
  {a.he} liked it.|When it was done, {a} could hardly wait for the morning.]
[The next day, {b} opened the parcel very slowly.|"Happy birthday!" cried {a}, and held out the
  {last}.]
["Did you make this?" asked {b}. "For me?"|{b} looked at it for a long time. "It is the best
  present of all," {b.he} said.|"It is perfect," said {b}, "even where it is crooked."]
[{a} told {b} the whole story of {missing.the}.|And {a} turned as red as a cherry.|{b} never let
  anybody else touch it.] {closing}
""",
    prepare_present,
)

BAKES = (
    ("plum cake", "salt instead of sugar", "It tasted like the sea", "tasted everything first"),
    ("bread", "far too much yeast", "It grew and grew and lifted the lid of the oven",
     "measured every spoon"),
    ("apple pie", "no butter at all", "It was as hard as a roof tile",
     "read the recipe from top to bottom"),
    ("pancakes", "a whole pot of pepper", "One bite, and everybody sneezed",
     "smelled every pot before using it"),
    ("berry tart", "soap flakes instead of flour", "It began to blow bubbles",
     "looked at each label twice"),
    ("carrot soup", "the wooden spoon, and forgot it", "It tasted of wood and smoke",
     "counted the spoons"),
)  # fmt: skip
OCCASIONS = ("the summer feast", "the big supper", "the harvest feast", "the spring party",
             "the birthday of the oldest neighbour", "the lantern feast")  # fmt: skip


def prepare_baking(stage: Stage) -> None:
    """Cooking in a hurry goes wrong for a reason; the second time it is done with care."""
    stage.avoid("careful", "patient")
    dish, mistake, outcome, lesson = stage.pick(BAKES)
    if stage.family == "children" and stage.rng.random() < 0.4:
        stage.adult("b")
    else:
        stage.friend("b")
    stage.fill(dish=dish, mistake=mistake, outcome=outcome, lesson=lesson)
    stage.fill(occasion=stage.pick(OCCASIONS), dish_cap=dish.capitalize())


BAKING = Plot(
    "baking",
    "trying again",
    "wants to make {dish}",
    """
{opening}

[It was the day of {occasion}, and {a} wanted to bring {dish}.|"I will make {dish} for
  {occasion}," said {a}. "{dish.cap} for everybody!"]
["I do not need a recipe," {a.he} said.|"How hard can it be?" asked {a}, and nobody answered.|{a}
  had never made it alone before.]
[{a} stirred and whistled, and did not look closely.|There was not much time, and {a} hurried.|A
  bee flew in, and {a} watched the bee instead of the pot.]
[So it happened that {a} put in {mistake}.|And so in went {mistake}.]
[Nobody noticed, least of all {a}.|It looked all right.|"That will do," said {a}.]

[Then {b.new} came to taste.|{b.new} was the first to try it.] {outcome}.
[{b} tried to be polite, but {b.his} face said everything.|"It is very, well, surprising," said
  {b}.|{b} drank three glasses of water.]
["It is all ruined!" said {a}.|{a} looked into the pot, and {a.his} ears turned hot.|"I am no good
  at this," said {a}.]
["My first one was worse," said {b}. "The dog buried it."|"You are not ruined, only the food is,"
  said {b}.|"Do you know how many times I got it wrong?" asked {b}. "Seven."]
["What did I do wrong?" asked {a}.|{a} wiped {a.his} nose. "Will you help me?"] "[You put in|There
  is] {mistake}," said {b}.
["Let us begin again, and slowly."|"We have an hour. That is enough."]

[This time {a} {lesson}.|{a} {lesson}, and {b} lit the fire.]
[Soon a wonderful smell filled the room.|When it was done, it was golden and hot.|It smelled so
  good that the neighbours came to the window.]
[At {occasion}, there was not a crumb left.|Everybody at {occasion} asked for more.]
["Who made this?" they asked. "We did," said {a}.|"What is your secret?" somebody asked. "Making a
  mistake first," said {a}.|{a} got a round of applause and bowed so low that {a.his} hat fell
  off.]
[The first pot went to the compost, and even the worms thought twice.|Later {a} wrote the recipe
  on the wall, in big letters.|{b} gave {a} {b.his} best spoon, and that was better than a medal.]
  {closing}
""",
    prepare_baking,
)

SKILLS = (
    ("whistle", "only air came out", "Make your lips small, as if you were saying blue",
     "a clear, high note rang through the air"),
    ("swim", "{a.he} went under like a stone", "First lie on your back and let the water hold you",
     "the water held {a.him}, and {a.he} swam five whole strokes"),
    ("skate", "{a.he} sat down hard on the ice", "Look where you want to go, and not at the ice",
     "{a.he} glided all the way across"),
    ("juggle", "the apples rained down on {a.his} head", "Begin with one, then take two",
     "three apples danced in the air"),
    ("read", "the letters looked like ants", "One letter at a time, and say it aloud",
     "the ants turned into a word, and the word was home"),
    ("play the drum", "it sounded like a falling cupboard", "Listen to your heart, and follow it",
     "the drum began to walk, and then to run"),
    ("tie a bow", "it was a knot, and then a bigger knot", "Make two ears, and cross them",
     "there was a bow with two fine ears"),
    ("walk on stilts", "{a.he} fell into the hedge", "Take small steps, and never stand still",
     "{a.he} walked once around the yard, as tall as a door"),
    ("draw a horse", "it looked like a table with a tail", "Look longer than you draw",
     "there was a horse on the paper, and it was almost running"),
)  # fmt: skip


def prepare_skill(stage: Stage) -> None:
    """{a} cannot do something, gets one piece of good advice, and practises for days."""
    known = stage.cast["a"].skills
    skill, failure, advice, success = stage.pick([s for s in SKILLS if s[0] not in known])
    if stage.family == "children" and stage.rng.random() < 0.4:
        stage.adult("b")
    else:
        stage.friend("b")
    stage.fill(skill=skill, failure=failure, advice=advice, success=success)
    stage.fill(days=stage.pick(("Monday", "Tuesday", "Wednesday")))


SKILL = Plot(
    "skill",
    "learning something new",
    "learns to {skill}",
    """
{opening}

[Everybody could {skill}, and best of all {b.plain}. Only {a} could not.|More than anything, {a}
  wanted to {skill}, like {b.new}.|When {a}
  saw {b.plain}, who could {skill} better than anybody, {a.he} made up {a.his} mind. "I want to
  {skill} too."]
[On {days}, {a} tried for the first time, but {failure}.|{a} tried it {at once}. But {failure}.]
[{a.He} tried again, and it went no better.|The second try was worse than the first.|A few others
  laughed, and {a} went home.]
["I will never learn it," said {a}.|"Some are born for it, and I am not," said {a}.|{a} kicked a
  stone, and that hurt as well.]

[{b} had seen it all.|Then {b} sat down next to {a}.]
["How long did it take you?" asked {a}. "A whole summer," said {b}.|"I could not do it either,
  once," said {b}.|"You are doing it too fast," said {b}.] "{advice}."
["Show me once more," said {a}.|{a} thought about that.|"That is all?" asked {a}. "That, and a
  hundred tries," said {b}.]
[{a} practised in the morning and in the evening.|Every day, {a} practised behind the house, where
  nobody could see. |{a} counted the tries. Ten, twenty, fifty.]
[Some days it went well, and some days it did not.|Often {a} wanted to stop, but {b} only said,
  "Once more."|It rained, and {a} went on under the roof.]

[And then, one {part}, it happened: {success}.|At the ninety-ninth try, {success}.|One day {a} did
  it without thinking, and {success}.]
["Did you see that?" shouted {a}. "[I saw it|The whole world saw it]," said {b}.|{a} stood there
  with an open mouth. Then {a.he} did it again, to be sure.|{b} clapped until {b.his} {b.hands}
  were sore.]
["Now I can {skill}," said {a}. "You could do it all along," said {b}. "You only did not know it
  yet."|That was how {a} learned it: not all at once, but a little every day.|Not long after,
  somebody small came by and asked {a} for help. "{advice}," said {a}.] {closing}
""",
    prepare_skill,
)

PLANTS = (
    ("sunflower", "a striped seed", "was taller than the door"),
    ("pumpkin", "a flat white seed", "was so big that nobody could lift it alone"),
    ("bean", "a speckled bean", "climbed up to the window and looked in"),
    ("apple tree", "a brown pip", "bore its first red apple"),
    ("strawberry plant", "a tiny green shoot", "was full of red berries"),
    ("oak", "a round acorn", "had seven strong leaves"),
)
TROUBLES = (
    ("no rain fell for weeks", "carried water from the well, one can after another"),
    ("the snails came at night", "built a little wall of sand all around it"),
    ("a crow wanted to dig it up", "made a scarecrow with {a.his} own hat"),
    ("a frost was coming", "covered it with {a.his} own blanket"),
    ("a storm bent it to the ground", "tied it to a stick with a soft ribbon"),
    ("weeds grew all around it", "pulled out the weeds, one by one"),
)


def prepare_seed(stage: Stage) -> None:
    """A seed, impatience, a danger and the care against it, and a harvest to share."""
    stage.avoid("patient")
    plant, seed, glory = stage.pick(PLANTS)
    trouble, care = stage.pick(TROUBLES)
    stage.friend("b")
    stage.fill(seed_the="the " + seed.removeprefix("a "))
    stage.fill(plant=plant, seed=seed, glory=glory, trouble=trouble, care=care)
    stage.fill(where=stage.spots(1)[0], opening="[{tale}|{plain}]")


SEED = Plot(
    "seed",
    "being patient",
    "plants a seed",
    """
{opening}

[One spring day, {a} found {seed} in {a.his} pocket and showed
  it to {b.new}.|In spring, {b.plain} gave {a} {seed}.|{a} had got {seed} from {b.plain}.]
["What will it be?" asked {a}. "Wait and see," said {b}.|"Put it into the earth," said {b}, "and
  then be patient."]
[{a} dug a hole, put it in and covered it with earth.|{a} made a small bed for it in the earth.]
[{a.He} sat down beside it and waited until noon. Nothing happened.|The next morning, {a} ran out
  to look. There was only earth.|After one day, {a} wanted to dig it up again.]
["Is it asleep?" asked {a}.|"How long does it take?" asked {a}.]
["It is busy," said {b}. "You just cannot see it."|"As long as it takes," said {b}, "and not a
  minute less."]

[A week went by, and then another.|{a} told it stories, so that it would not be bored.]
[Then there was a green tip, no longer than an eyelash.|One morning, something green looked out of
  the earth.]
["Hello," whispered {a}.|{a} danced around it on the tips of {a.his} toes.]
[But then {trouble}.|It was not safe yet, for {trouble}.]
["It will die!" cried {a}.|{a} lay awake and worried. |"What can we do?" asked {a}. "What can you
  do?" asked {b}.] So {a} {care}.
[{b} helped, and said nothing about the mud.|It was a lot of work for such a small plant.|{a} did
  it every day, and never forgot it once.]

[The days grew long and warm.|Summer came.]
[When it was time, the {plant} {glory}.|And one day, the {plant} {glory}.]
["You did that," said {b}. "No," said {a}. "We did: the sun, the rain, you and I."|{a} could not
  believe that all of this had been inside {seed.the}.|"It was worth the waiting," said {a}.]
[{a} shared the joy with everybody who came by.|{a} kept one seed for the next spring, and gave
  one to {b}.|In autumn {a} had a whole handful of new seeds, and {a.he} knew exactly what to do.]
[Now {a} knows that some things are
  slow because they are good.|]
""",
    prepare_seed,
)

PLOTS = (PRESENT, BAKING, SKILL, SEED)
