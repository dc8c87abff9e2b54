"""Plots about things: lost, stuck, broken, made, repaired."""

from ys_llm.gendata.programs.stories.plot import Plot
from ys_llm.gendata.programs.stories.stage import Stage
from ys_llm.gendata.programs.words import DECOYS, FOODS

# How a thing came to its spot, by its nature ("" fits every thing).
CAUSES = (
    ("round", "It had rolled [there|away] all by itself[, as round things do|]."),
    ("round", "It had rolled [down the path|out of {a.his} bag] and stopped {spot}."),
    ("light", "The wind had carried it there in the night."),
    ("light", "A gust of wind must have taken it."),
    ("shiny", "A magpie had hidden it there, because magpies love shiny things."),
    ("shiny", "It was only a glint in the light, but it was enough."),
    ("toy", "A puppy had played with it and left it there."),
    ("", "It had slipped out of {a.his} bag."),
    ("", "{a} had put it there {a.himself}, to keep it safe, and had forgotten all about it."),
    ("", "{a} had sat there the day before, watching the clouds."),
)


def prepare_lost(stage: Stage) -> None:
    """A thing lies at one spot; two other spots are searched in vain."""
    thing = stage.bring_thing()
    stage.friend("b")
    spot, first, second = stage.spots(3)
    stage.put(thing.noun, spot)
    first_decoy, second_decoy = stage.rng.sample(DECOYS, 2)
    causes = [text for nature, text in CAUSES if not nature or nature in thing.nature]
    stage.fill(
        spot=stage.where[thing.noun],
        first=first,
        second=second,
        first_decoy=first_decoy,
        second_decoy=second_decoy,
        cause=stage.pick(causes),
        food=stage.pick(FOODS),
        giver=stage.pick(("grandmother", "grandfather", "aunt", "uncle", "mother", "father")),
    )


LOST = Plot(
    "lost",
    "looking for something that is lost",
    "looks for a lost {noun}",
    """
{opening}

[{a} had a {thing} [that {a.he} loved more than anything|from {a.his} {giver}], but [one
  {part}|today] it was [gone|nowhere to be seen]. |There was one thing that {a} never left at
  home, and that was {a.his} {thing}. But [one {part} |today] {a.his} [bag|pocket] was empty.
  |"Where is my {noun}?" [cried|said|asked] {a}. It was a {thing}, a gift from {a.his} {giver},
  and it was [not where it should be|gone].]
[{a} looked {first}, but [there was nothing except {first.decoy}|{a.he} found only {first.decoy}].
  |First {a.he} looked {first}. {first.decoy}! That was all.]
[Then {a.he} searched {second}, and [there was|found] {second.decoy}, but no {noun}. |{second},
  there was {second.decoy}. But the {noun} was not there. |{a.He} looked {second} too.
  [Nothing|Only {second.decoy}].]
[{a} was {sad}.|{a} sat down and sighed.|]

{meets} {asks}
["I have lost my {thing}," {said sadly}.
|"My {noun} is gone, and I have looked everywhere," said {a}.] {thinks}.
["Have you looked {spot}?" {b.he} asked. ["No," said {a}, "not there."|{a} shook {a.his} head.]
  ["Then let us go and see|"Come, we will look together|"Four eyes see more than two]," said {b}.
|["When did you see it last?"|"Where were you yesterday?"] {b.he} asked. {a} tried to remember.
  [Then {a.his} eyes grew wide.|Then {a.he} jumped up.] "{spot}!"
|"I saw something {spot} this morning," {b.he} said. "Perhaps that was it."
  [They did not waste a minute.|"Then what are we waiting for?" said {a}.]]

They [ran|{walked}] there {at once}. And there, {spot},
[lay|was] the {thing}! {cause} {thanks} {snack}
[After that, {a} [sewed a big pocket|tied a string] to keep the {noun} safe. |{a} put the {noun}
  [carefully|deep] into {a.his} bag and closed it well. |"[Next time|From now on], I will always
  know where my {noun} is," said {a}.|] {closing}
""",
    prepare_lost,
)

HIGH = {
    "animals": ("in the top of a tall pine", "on a high rock", "in the crown of the oldest oak",
                "on a thin branch above the water"),
    "children": ("on the roof of the shed", "in the top of the chestnut tree",
                 "on the high wall", "on the roof of the bakery"),
}  # fmt: skip
RESCUES = {
    "fly": '"[I have wings|Wings are good for such things|That is easy for me]," said {b}. '
    "{b.He} flew up, circled once, and pushed the {noun} with {b.his} beak until it fell.",
    "climb": '"[I can climb|Climbing is what I do best|Wait here]," said {b}. {b.He} climbed up, '
    "[higher and higher|slowly and surely|one step at a time], and brought the {noun} down.",
    "ladder": '"[We need a ladder|I know what will help|Wait a moment]," said {b}. {b.He} fetched '
    "the long ladder from the shed and held it, and {a} climbed up to the {noun}, step by step.",
}
ATTEMPTS = (
    "{a} jumped as high as {a.he} could, but {a.he} {a.was} [far too small|not tall enough].",
    "{a} [tried a long stick|poked with a stick], but the stick was [too short|not long enough].",
    "{a} threw [a pine cone|a pebble] at it, but missed[, and then missed again|].",
    "{a} shook and pulled at everything that {a.he} could reach, but nothing moved.",
    "{a} shouted at it, but of course a {noun} does not listen.",
    "{a} climbed onto a box, but the box was old and it broke.",
)


def prepare_stuck(stage: Stage) -> None:
    """A light thing is stuck high up; only somebody with the right skill can fetch it."""
    stage.bring_thing(nature="flies")
    skill = stage.pick(("fly", "climb") if stage.family == "animals" else ("fly", "ladder"))
    if skill == "ladder":
        stage.adult("b")
    else:
        stage.animal("b", skill=skill)
    first, second = stage.rng.sample(ATTEMPTS, 2)
    stage.fill(
        high=stage.pick(HIGH[stage.family]),
        try_one=first,
        try_two=second,
        rescue=RESCUES[skill],
        food=stage.pick(FOODS),
    )


STUCK = Plot(
    "stuck",
    "asking for help",
    "cannot reach a {noun}",
    """
{opening}

[{a} was playing with {a.his} {thing} when [a sudden wind came|something went wrong]. |{one day},
  {a} took {a.his} {thing} outside. {a.He} threw it into the air, and the wind caught it.]
[Up it went, and up, until it was stuck {high}.|It flew away and landed {high}.]
["{oh no}!" [cried|said] {a}. "[How will I get it down|My {noun}]?"|{a} stared up at it.]
  {try.one} {try.two}
[{a} sat down on the ground.|{a} felt like crying.|"I give up," said {a}.|"It is no use," said
  {a}.]

{meets}
[{asks} [{a} pointed up.|"My {noun} is up there," said {a}, "and I am down here."] |"Why are you
  looking up like that?" {b.he} asked. "My {noun} is stuck," {said sadly}.]
[It was hard for {a} to ask, but {a.he} did. "Could you help me, please?" |"Please," said {a},
  "can you help me?"] {rescue}

[{a} held the {noun} tight.|{a} danced in a circle with the {noun}.|{a} was {happy}.] {thanks}
["Next time, ask me first," said {b} and {smiled}.|"That is what friends are for," said {b}. |"Now
  show me how you play with it," said {b}. So {a} did.] {snack}
[They played together until the sun went down.|{a} had learned that asking is not so hard. |Some
  things are too high for one, but not for two.|] {closing}
""",
    prepare_stuck,
)

BREAKABLES = (
    ("blue vase", "It fell from the shelf and broke into three pieces.", "glued"),
    ("clay bowl", "It slipped from the table and cracked.", "glued"),
    ("big drum", "There was a loud bang, and then there was a hole in it.", "patched"),
    ("paper lantern", "There was a rip, and then there was a hole in it.", "patched"),
    ("wooden boat", "The little mast snapped in two.", "glued"),
    ("garden chair", "There was a crack, and one leg came off.", "nailed"),
    ("white teapot", "The handle came off with a small click.", "glued"),
    ("kite", "There was a rip, right through the middle.", "patched"),
)


def prepare_honest(stage: Stage) -> None:
    """{a} breaks something of {b}'s, hides it, and cannot bear the secret."""
    item, crash, mended = stage.pick(BREAKABLES)
    if stage.family == "children" and stage.rng.random() < 0.5:
        stage.adult("b")
        stage.fill(b_new="{b}")
    else:
        stage.friend("b")
    spot = stage.spots(1)[0]
    stage.put(item, spot)
    noun = item.split()[-1]
    stage.fill(item=item, noun=noun, crash=crash, mended=mended, spot=stage.where[item])
    stage.fill(food=stage.pick(FOODS))


HONEST = Plot(
    "honest",
    "telling the truth",
    "breaks a {noun} and tells the truth",
    """
{opening}

[{one day}, {a} was [visiting|staying with] {b.new}.|{a} was playing at the home of {b.new}.] {b}
  had a {item}, and {b.he} was very proud of it.
["Please be careful with it," {b.he} said.|]
[But {a} was dancing about, and [bumped against it|touched it with one elbow].|When {b} was out of
  the room, {a} took it down, only to look at it closely.|But {a} wanted to hold it, just for a
  moment.] {crash}
[{a} [went|turned] cold all over.|{a} stood quite still.|"{oh no}," whispered {a}.]
[Quickly, {a.he} took the {noun} and hid it {spot}.|{a} did not know what to do, so {a.he} hid the
  {noun} {spot}.]

[When {b} came back, {a} smiled, but the smile did not feel real.|All {part} long, {a} could think
  of nothing else.|At lunch, {a} could not eat. The secret sat in {a.his} stomach like a stone.]
["Are you well?" asked {b}. "[You are so quiet|You look pale]."|{b} looked around. "Have you seen
  my {noun}?" {b.he} asked.]
[{a} took a deep breath.|{a} looked at the floor. Then {a.he} looked up.|{a}'s heart was beating
  fast.]
["I broke it," [said|whispered] {a}. "It is {spot}. I am [so|very] sorry." |"I have to tell you
  something," said {a}. "I broke your {noun}, and I hid it {spot}. I am sorry."]

They {walked} there together, and
[{b} picked up the {noun}|there it was, {spot}].
[{b} was silent for a while.|{b} looked sad, but only for a moment.] "[It is only a {noun}|A
  {noun} can be mended]," {b.he} said. "[Thank you for telling me|I am glad that you told me the
  truth|It was brave to tell me]."
[They {mended} the {noun} together, and it [looked almost like new|was even more special than
  before]. |It took them an hour, but they {mended} it, and {a} did most of the work.]
[{a} felt as light as a feather.|The heavy feeling in {a}'s stomach was gone.|{a} felt much better.]
  {snack}
[After that, {a} never hid a mistake again.|So {a} learned that the truth is lighter than a
  secret. |] {closing}
""",
    prepare_honest,
)

REPAIRS = (
    ("bridge", "The storm had washed away the middle of the bridge", "a long plank",
     "laid it over the gap", "walked across without getting wet"),
    ("cart", "One wheel of the cart had come off", "a strong peg", "pushed the wheel back on",
     "rolled the cart down the road"),
    ("roof", "There was a hole in the roof, and it was dripping", "a flat board",
     "nailed it over the hole", "sat under the roof and listened to the rain"),
    ("fence", "The fence had fallen over in the wind", "three new posts",
     "set the fence upright again", "leaned on the fence and looked at their work"),
    ("boat", "There was a crack in the bottom of the boat", "a pot of tar",
     "closed the crack", "rowed once around and came back dry"),
    ("swing", "The rope of the swing had torn", "a new rope", "tied it with a double knot",
     "took turns on the swing"),
)  # fmt: skip
FAILED_REPAIRS = (
    ("tied it with grass", "but grass is not strong, and it tore"),
    ("tried to hold it with mud", "but the mud dried and fell off"),
    ("used a thin stick", "but the stick broke with a snap"),
    ("pushed it with one shoulder", "but it was too heavy for one"),
    ("stuffed leaves into it", "but the leaves blew away"),
)


def prepare_repair(stage: Stage) -> None:
    """Something is broken; alone it cannot be mended; with the right thing and a friend it can."""
    broken, trouble, need, fix, use = stage.pick(REPAIRS)
    tried, failed = stage.pick(FAILED_REPAIRS)
    stage.friend("b")
    spot = stage.spots(1)[0]
    stage.put(need, spot)
    stage.fill(broken=broken, trouble=trouble, need=need, fix=fix, use=use, tried=tried)
    stage.fill(failed=failed, spot=stage.where[need], food=stage.pick(FOODS))


REPAIR = Plot(
    "repair",
    "working together",
    "mends a broken {broken}",
    """
{opening}

[{one day}, {a} [found that something was wrong|stopped short].|But there was a problem.]
  {trouble}[, and nobody had mended it|].
["Somebody should do something," said {a}. {a.He} looked around. There was nobody else. "Then I
  will do it."|"I can mend that," said {a}.] {a.He} {tried}, {failed}.
[{a.He} tried a second time, and it was no better.|"Hm," said {a}.|]

{meets}
["What are you doing?" {b.he} asked.|{b.He} watched for a while. "That will not hold," {b.he}
  said.]
["I am mending the {broken}," said {a}, "but it [does not want to be mended|keeps going wrong]."
  |"Do you know a better way?" asked {a}.] {thinks}. "[You need|What we need is|It wants] {need}.
  I saw something like that {spot}."
[They {walked} there, and {b} was right.|{a} ran to look.] {spot}, they found {need}.
[Then the work began.|They carried it back together.|It was heavy, but they sang, and that
  helped.] {b} held on tight while {a} {fix}.
[It took the whole {part}.|Soon it was done.|{a} got a splinter and {b} got a blister, but neither
  of them stopped.]

["Will it hold?" asked {b}. "Let us try," said {a}.|They stepped back and looked at it.]
[And it held!|It was not pretty, but it was strong.|It was as good as new.] They {use}. {snack}
["Alone I would still be sitting there," said {a}.|"Two heads are better than one," said {b}.
  |Everybody who came by said thank you.|{a} carved two letters into the wood, one for each of
  them.] {closing}
""",
    prepare_repair,
)

PLOTS = (LOST, STUCK, HONEST, REPAIR)
