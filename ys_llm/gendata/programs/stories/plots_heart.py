"""Plots about feelings: fear, sharing, a new friend, a race, a secret noise, a sleepless night."""

from ys_llm.gendata.programs.stories.plot import Plot
from ys_llm.gendata.programs.stories.stage import Stage
from ys_llm.gendata.programs.words import FOODS

# What is feared, why it must be faced, the friend's advice, and how it turns out.
FEARS = (
    ("the dark", "{b} had left {b.his} lantern in the cellar, and {b.his} leg hurt too much for the"
     " steps", "Count the steps, and say hello to each of them",
     "There were nineteen steps, and every one of them got a hello",
     "The dark was only the same old cellar with the light turned off"),
    ("thunder", "a storm came up, and {b} was alone at home", "When it flashes, sing until it"
     " rumbles", "{a} sang so loudly that the thunder sounded like a drum in the song",
     "Thunder was only a very big noise, and it never came inside"),
    ("the high bridge", "{b} was waiting on the other side with a heavy bag",
     "Do not look down, look at me", "{a} looked at {b} and put one foot before the other,"
     " ten times, twenty times", "The bridge was just a road with a view"),
    ("deep water", "{b}'s little boat had drifted away from the shore",
     "Go slowly, and keep one hand on the rope", "The water was cold, but the rope was strong,"
     " and {a} waded out and pulled the boat back",
     "The water had carried {a.him} more than it had frightened {a.him}"),
    ("the big dog at the mill", "{b} needed flour, and there was no other road to the mill",
     "Stand still, hold out something to eat, and wait", "{a} held out a crust, and the dog"
     " sniffed it, wagged its tail and lay down on its back", "The dog had only been lonely"),
    ("speaking in front of others", "it was {b}'s birthday, and somebody had to make the speech",
     "Pick one friendly face and talk only to that one", "{a} looked at {b} and talked, and soon"
     " everybody was laughing at the right places", "A crowd was only many friends at once"),
    ("the attic", "{b} had heard a kitten crying up there", "Take a lamp, and tell every shadow its"
     " name",
     "There were a hat stand, an old coat and a broken chair, and then there was a soft meow",
     "The attic was full of old things, and not one of them was a ghost"),
    ("heights", "{b} had climbed a wall and could not get down again", "Hold on with three and move"
     " with one", "{a} climbed slowly, and then {a.he} showed {b} where to put every foot",
     "From up there one could see the whole world, and the world was beautiful"),
)  # fmt: skip


def prepare_fear(stage: Stage) -> None:
    """{a} fears something; a friend in need is a reason to face it."""
    stage.avoid("brave")
    fear, need, advice, deed, insight = stage.pick(FEARS)
    stage.friend("b")
    stage.fill(fear=fear, need=need, advice=advice, deed=deed, insight=insight)


FEAR = Plot(
    "fear",
    "being brave",
    "is afraid of {fear}",
    """
{opening}

[There was only one problem: {a} was afraid of {fear}.|{a} liked almost everything, but not
  {fear}. |Nobody knew that {a} was afraid of {fear}.]
[Just thinking of it made {a.his} knees shake. |"Maybe tomorrow," {a.he} always said, and tomorrow
  never came.]

[Then something happened.|But one {part}, things changed.] It was {b.new} who needed help. {need}.
["I cannot do it," [thought|said] {a}.|{a} swallowed hard.|{a} took one step, and stopped.]
[{b} called out, "I know that you are afraid. [So am I, sometimes|That is all right]. {advice}."
  |"Are you afraid?" asked {b}. "[A little|Yes]," said {a}. "{advice}," said {b}. "It always
  helps."]
[{a} thought of {b}, and [of how much {b.he} needed {a.him}|not of {fear}]. {a} [nodded|went].
  |{a} closed {a.his} eyes, opened them again, and began.|"All right," said {a}, and {a.his} voice
  shook only a little.]

{deed}.
[{a}'s heart was beating like a drum, but {a} did not turn back.|It took a long time, and then it
  was done.|]
["You did it!" cried {b}.|{b} laughed with relief.]
["I was afraid the whole time," said {a}. "That is what brave means," said {b}. |"It was not so
  bad," said {a}, and was surprised to find that it was true.] {insight}.
[The next day, {a} did it again, just because {a.he} could.|{a} was still a little afraid, but now
  the fear was small enough to fit into a pocket.|"Next time," said {a}, "I will do it
  whistling."] {closing}
""",
    prepare_fear,
)

# A thing two friends want: what it is, how one takes it, what goes wrong, how two can have it.
SHARED = (
    ("swing", "sit on", "the rope began to twist, and they both fell into the grass",
     "one swings and the other one pushes, and then we change"),
    ("last piece of cake", "eat", "it fell on the ground, with the cream side down",
     "one cuts, and the other one chooses"),
    ("red sledge", "ride on", "it slid down the hill without either of them",
     "we both sit on it, one behind the other"),
    ("big umbrella", "hold", "it turned inside out, and they both got wet",
     "the tall one holds it, and the small one walks close"),
    ("best paintbrush", "use", "the paint pot fell over and made a large green puddle",
     "one paints the sky, and the other one paints the ground"),
    ("hammock", "lie in", "it turned over and tipped both of them out",
     "we lie in it together, head to toe"),
    ("little boat", "steer", "it went round and round in a circle",
     "one steers, and the other one rows"),
    ("picture book", "read", "a page tore with an ugly sound",
     "one reads aloud, and the other one turns the pages"),
    ("drum", "play", "the stick flew through the air and into the pond",
     "one drums, and the other one dances"),
)  # fmt: skip


def prepare_sharing(stage: Stage) -> None:
    """Two want the same thing, quarrel, lose it, and find a way to both have it."""
    stage.avoid("kind", "gentle", "polite", "thoughtful")
    item, verb, trouble, way = stage.pick(SHARED)
    stage.friend("b")
    stage.fill(item=item, verb=verb, trouble=trouble, way=way)
    stage.fill(again="a new one" if "cake" in item else "the {item}", food=stage.pick(FOODS))
    repaired = "baked [another|a new] cake" if "cake" in item else "put everything right again"
    stage.fill(repaired=repaired)


SHARING = Plot(
    "sharing",
    "sharing",
    "does not want to share the {item}",
    """
{opening}

[{one day}, {a} was playing with {b.new}.|{one day}, {b.new} came to play.]
[Everything was fine until they saw the {item}.|They had a good time together, until they came to
  the {item}.]
["I saw it first!" said {a}. "But I want to {verb} it too," said {b}.|"It is mine," said {a}. "It
  is everybody's," said {b}.|Both of them wanted to {verb} it, and neither wanted to wait.]
[{a} pulled on one side, and {b} pulled on the other.|They pushed and they pulled.|Neither of them
  let go.]
[Then there was a bump, and|And then] {trouble}.
[For a moment, nobody said a word.|They stared at each other.|It was very quiet.]

["Now look what you did," said {a}. "What I did?" said {b}.|"That was your fault!" cried {b}.] {a}
[turned away and sat down under a tree, and {b} sat down under another|sat down on a stone with
  folded arms, and {b} sat down on another].
[But it is no fun to be right all alone.|The minutes were long.|{a} looked over at {b}. {b} looked
  over at {a}.]
[After a while, {a} got up. "I am sorry," {a.he} said.|"I was not kind," said {a} at last.]
["I am sorry too," said {b}.|"Neither was I," said {b}.]
["I have an idea," said [{a}|{b}]. "What if {way}?"|They thought about it together. "What if
  {way}?" said {a}.]

So
[that is what they did|they {repaired}, and then they did just that].
[It was much better than before.|It was twice as much fun.|They laughed so hard that {a} got the
  hiccups.]
["Why did we not think of that at once?" asked {b}.|"Two is a good number," said {a}.]
[{a} had learned that a thing can grow when you share it.|After that, whenever they both wanted
  the same thing, they sat down and made a plan.|Nobody ever asked again whose turn it was,
  because they both knew.] {closing}
""",
    prepare_sharing,
)

# What the new one loves, and how that shows.
LOVES = (
    ("drawing", "drew a [long|fine] dragon in the sand", "had given the dragon a pair of wings"),
    ("stones", "put seven round stones in a row", "had laid an eighth stone at the end of the row"),
    ("poems", "wrote two lines of a poem on the wall with chalk", "had written the third line"),
    ("building", "built a tower of sticks", "had put a flag made from a leaf on top"),
    ("stars", "made a map of the stars with pebbles", "had put the missing star in its place"),
    ("riddles", "wrote a riddle on a leaf", "had written the answer under it"),
    ("dancing", "drew the steps of a dance in the dust", "had drawn the next three steps"),
    ("boats", "made a boat out of bark", "had made a second boat and tied it to the first"),
)


def prepare_newcomer(stage: Stage) -> None:
    """{a} is new and alone; what {a} loves finds {a} a friend."""
    love, deed, answer = stage.pick(LOVES)
    stage.friend("b")
    stage.fill(love=love, deed=deed, answer=answer, food=stage.pick(FOODS))


NEWCOMER = Plot(
    "newcomer",
    "finding a friend",
    "is new {at} and finds a friend",
    """
{a} was {a.full}, and {a.he} {a.was} new {at}.
[{habit}|{sight}]
[{a} had come from far away, and everything was strange: the paths, the smells and the faces.|{a}
  did not know a single name here.|Every {part}, {a} watched the others play.]

[{a} wanted to say hello, but the words got stuck.|"May I play?" {a.he} practised, very softly.
  But when the others came close, {a} only coughed.|Once {a} almost asked to join in. Then the
  game was over, and everybody went home.]
[So {a.he} {a.was} alone again.|It was hard to be the new one.|]
[Because {a} loved {love}, {a.he} {deed}.|There was one thing that always helped, and that was
  {love}. So {a} sat down and {deed}.]
[It made the {part} a little shorter.|For a moment {a} forgot to be lonely.]
[Then it was time to go home.|When {a} had finished, {a.he} went home to eat.]

[The next day, something had changed.|When {a} came back, {a.he} could hardly believe it.]
  Somebody had been there.
[Somebody|And that somebody] {answer}.
["Who did that?" asked {a}.|{a} looked around.]
[A head came up behind a bush. |Somebody giggled.] It was {b.plain}.
["I hope you do not mind," said {b}. "I love {love} too."|"I did," said {b}. "I did not know how
  to say hello."|"It was so good," said {b}, "that I could not leave it alone."]
["I do not mind at all," said {a}.|"It is better now," said {a}, and meant it.|"I am {a}," said
  {a}. This time, the words came out easily.]

[All {part} they were busy together|They stayed until the sun went down|They did not stop until
  somebody called them in for supper], and
[not once did {a} feel new|the others came to look, one after another].
["Will you come back tomorrow?" asked {b}. "Of course," said {a}.|"See you tomorrow," said {b},
  and it was the best thing that {a} had heard for weeks.] {closing}
""",
    prepare_newcomer,
)

RACES = (
    ("to the old mill and back", "run", "a root", "{b.his} foot was caught under a root"),
    ("around the lake", "run", "the mud", "{b} was stuck in the mud up to the knees"),
    ("up the hill", "climb", "the loose stones", "{b} had slipped and hurt one ankle"),
    ("through the corn field", "run", "the tall corn", "{b} had lost the way in the tall corn"),
    ("to the lighthouse", "run", "a hole", "{b} had fallen into a hole in the sand"),
    ("down to the bridge", "run", "a thorn bush", "{b} was caught in a thorn bush"),
)


def prepare_race(stage: Stage) -> None:
    """A race that {a} could win, if {a} did not stop to help."""
    course, _, trap, mishap = stage.pick(RACES)
    stage.friend("b")
    prize = stage.pick(("golden cup", "big cake", "blue ribbon", "basket of pears", "silver bell"))
    stage.fill(course=course, trap=trap, mishap=mishap, prize=prize)


RACE = Plot(
    "race",
    "kindness",
    "takes part in a race",
    """
{opening}

[Every year there was a race {course}.|{one day}, there was a race {course}.] The winner would get
  a {prize}.
[{a} had practised for weeks.|"I will never win," said {a}, "but I will try."|{a} wanted the
  {prize} more than anything.]
[{b.new} wanted to win as well.|The fastest of all was {b.plain}.]
["You are too slow," said {b}, and laughed.|"I shall be home before you are halfway," said
  {b}.|"Good luck," said {a}. "I do not need luck," said {b}.]
["Ready, steady, go!"|Somebody rang a bell, and off they went.|A whistle blew, and the race
  began.]

{b}
[shot ahead|was the first around the corner|ran like the wind], and {a}
[came far behind|followed, step by step|ran as well as {a.he} could].
[But after a while {a} heard a cry.|Then, suddenly, there was a shout.] It was {b}. {mishap}.
["Help!" cried {b}.|"Go on," said {b} and looked away. "You can win now."]
[{a} looked at the road. It was empty. The {prize} was as good as won.|For one moment, {a} thought
  of the {prize}.|The others were far behind. {a} could be the first.]
[Then {a} turned around.|But {a} had already stopped.]
["A {prize} can wait," said {a}.|"Hold on to me," said {a}.|"First things first," said {a}.]
[It took a good deal of pulling, but at last {b} was free.|{a} got {b.him} away from {trap}, bit
  by bit.]
["Why did you stop?" asked {b}. "Because you called," said {a}.|"After all I said to you?" asked
  {b} quietly. {a} only nodded.]

[They went on together, side by side.|{b} leaned on {a}, and so they came to the end of the race.]
[They were the last, but everybody clapped.|Others had passed them, and somebody else got the
  {prize}.]
["You should have the prize," said {b}. "I have one already," said {a}. "I have a friend."|{b}
  went home and came back with a medal cut out of paper. It said: For the kindest runner.|"Next
  year," said {b}, "we run as a team."] {closing}
""",
    prepare_race,
)

PLOTS = (FEAR, SHARING, NEWCOMER, RACE)
