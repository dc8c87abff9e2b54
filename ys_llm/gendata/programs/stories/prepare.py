"""What happens in a story, decided before it is told: one function for each plot.

Each brings the characters on the stage and fills the slots that the script of its plot uses. The
order of the random choices decides the bytes of the corpus.
"""

from collections.abc import Callable, Mapping

from ys_llm.gendata.programs.stories.plots import Plot
from ys_llm.gendata.programs.stories.stage import StoryStage
from ys_llm.gendata.programs.words import DECOYS, FOODS


def prepare_lost(stage: StoryStage, plot: Plot) -> None:
    """A thing lies at one spot; two other spots are searched in vain."""
    thing = stage.bring_thing()
    stage.friend("b")
    spot, first, second = stage.spots(3)
    stage.put(thing.noun, spot)
    first_decoy, second_decoy = stage.rng.sample(DECOYS, 2)
    causes = [row["cause"] for row in plot.rows["causes"] if row["nature"] in ("", *thing.nature)]
    stage.fill(
        spot=stage.where[thing.noun],
        first=first,
        second=second,
        first_decoy=first_decoy,
        second_decoy=second_decoy,
        cause=stage.pick(causes),
        food=stage.pick(FOODS),
        giver=stage.pick(plot.lists["givers"]),
    )


def prepare_stuck(stage: StoryStage, plot: Plot) -> None:
    """A light thing is stuck high up; only somebody with the right skill can fetch it."""
    stage.bring_thing(nature="flies")
    skill = stage.pick(("fly", "climb") if stage.family == "animals" else ("fly", "ladder"))
    if skill == "ladder":
        stage.adult("b")
    else:
        stage.animal("b", skill=skill)
    first, second = stage.rng.sample(plot.lists["attempts"], 2)
    rescues = {row["skill"]: row["rescue"] for row in plot.rows["rescues"]}
    stage.fill(
        high=stage.pick(plot.lists[f"high_{stage.family}"]),
        try_one=first,
        try_two=second,
        rescue=rescues[skill],
        food=stage.pick(FOODS),
    )


def prepare_honest(stage: StoryStage, plot: Plot) -> None:
    """{a} breaks something of {b}'s, hides it, and cannot bear the secret."""
    row = stage.pick(plot.rows["breakables"])
    if stage.family == "children" and stage.rng.random() < 0.5:
        stage.adult("b")
        stage.fill(b_new="{b}")
    else:
        stage.friend("b")
    spot = stage.spots(1)[0]
    stage.put(row["item"], spot)
    stage.fill(**row, noun=row["item"].split()[-1], spot=stage.where[row["item"]])
    stage.fill(food=stage.pick(FOODS))


def prepare_repair(stage: StoryStage, plot: Plot) -> None:
    """Something is broken; it takes the right thing and a friend to repair it."""
    row = stage.pick(plot.rows["repairs"])
    failed = stage.pick(plot.rows["failed_repairs"])
    stage.friend("b")
    spot = stage.spots(1)[0]
    stage.put(row["need"], spot)
    stage.fill(**row, **failed, spot=stage.where[row["need"]], food=stage.pick(FOODS))


def prepare_fear(stage: StoryStage, plot: Plot) -> None:
    """{a} fears something; a friend in need is a reason to face it."""
    stage.avoid("brave")
    row = stage.pick(plot.rows["fears"])
    stage.friend("b")
    stage.fill(**row)


def prepare_sharing(stage: StoryStage, plot: Plot) -> None:
    """Two want the same thing, quarrel, lose it, and find a way to both have it."""
    stage.avoid("kind", "gentle", "polite", "thoughtful")
    row = stage.pick(plot.rows["things"])
    stage.friend("b")
    is_cake = "cake" in row["item"]
    stage.fill(**row, again="a new one" if is_cake else "the {item}", food=stage.pick(FOODS))
    repaired = "baked [another|a new] cake" if is_cake else "put everything right again"
    stage.fill(repaired=repaired)


def prepare_newcomer(stage: StoryStage, plot: Plot) -> None:
    """{a} is new and alone; what {a} loves finds {a} a friend."""
    row = stage.pick(plot.rows["loves"])
    stage.friend("b")
    stage.fill(**row, food=stage.pick(FOODS))


def prepare_race(stage: StoryStage, plot: Plot) -> None:
    """A race that {a} could win, if {a} did not stop to help."""
    row = stage.pick(plot.rows["races"])
    stage.friend("b")
    stage.fill(**row, prize=stage.pick(plot.lists["prizes"]))


def prepare_noise(stage: StoryStage, plot: Plot) -> None:
    """A noise in the night, two wild guesses, and the small truth."""
    row = stage.pick(plot.rows["noises"])
    stage.friend("b")
    first, second = stage.rng.sample(plot.lists["guesses"], 2)
    stage.fill(**row, noise_cap=row["noise"].capitalize(), guess_one=first, guess_two=second)
    stage.fill(tool=stage.pick(plot.lists["tools"]), food=stage.pick(FOODS))


def prepare_sleepless(stage: StoryStage, plot: Plot) -> None:
    """{a} cannot sleep for a reason; remedies fail, and talking helps."""
    row = stage.pick(plot.rows["reasons"])
    if stage.family == "children":
        stage.adult("b")
    else:
        stage.friend("b")
    one, two = stage.rng.sample(plot.rows["remedies"], 2)
    stage.fill(**row, one=one["remedy"], fails_one=one["failure"])
    stage.fill(two=two["remedy"], fails_two=two["failure"], food=stage.pick(FOODS))


def prepare_storm(stage: StoryStage, plot: Plot) -> None:
    """A storm; a small shelter; one guest after another, and space for one more."""
    stage.friend("b")
    first, second, third = stage.rng.sample(plot.lists["guests"], 3)
    stage.fill(first=first, second=second, third=third, food=stage.pick(FOODS))
    stage.fill(shelter=stage.pick(plot.lists["shelters"]))


def prepare_wish(stage: StoryStage, plot: Plot) -> None:
    """A kind deed earns one wish, and {a} gives it away."""
    giver_row = stage.pick(plot.rows["givers"])
    wish_row = stage.pick(plot.rows["wishes"])
    stage.friend("b")
    stage.fill(**giver_row, **wish_row, own=stage.pick(plot.lists["own_wishes"]))
    words = giver_row["giver"].split()
    stage.fill(creature=words[2] if words[0] == "a" else "spirit")
    if words[1] in ("bee", "snail", "bird"):
        stage.fill(creature=words[1])


def prepare_present(stage: StoryStage, plot: Plot) -> None:
    """A present lacks one thing; it has to be earned from somebody who has it."""
    row = stage.pick(plot.rows["presents"])
    stage.friend("b")
    stage.fill(**row, missing_the="the " + row["missing"].split(" ", 1)[1])
    stage.fill(last=row["present"].partition(" of ")[0].split()[-1])


def prepare_baking(stage: StoryStage, plot: Plot) -> None:
    """Cooking in a hurry goes wrong for a reason; the second time it is done with care."""
    stage.avoid("careful", "patient")
    row = stage.pick(plot.rows["bakes"])
    _adult_or_friend(stage)
    stage.fill(**row, occasion=stage.pick(plot.lists["occasions"]))
    stage.fill(dish_cap=row["dish"].capitalize())


def _adult_or_friend(stage: StoryStage) -> None:
    if stage.family == "children" and stage.rng.random() < 0.4:
        stage.adult("b")
    else:
        stage.friend("b")


def prepare_skill(stage: StoryStage, plot: Plot) -> None:
    """{a} cannot do something, gets one piece of good advice, and practises for days."""
    known = stage.cast["a"].skills
    row = stage.pick([row for row in plot.rows["skills"] if row["skill"] not in known])
    _adult_or_friend(stage)
    stage.fill(**row, days=stage.pick(plot.lists["days"]))


def prepare_seed(stage: StoryStage, plot: Plot) -> None:
    """A seed, impatience, a danger and the care against it, and a harvest to share."""
    stage.avoid("patient")
    plant, trouble = stage.pick(plot.rows["plants"]), stage.pick(plot.rows["troubles"])
    stage.friend("b")
    stage.fill(**plant, **trouble, seed_the="the " + plant["seed"].removeprefix("a "))
    stage.fill(where=stage.spots(1)[0], opening="[{tale}|{plain}]")


def prepare_little_one(stage: StoryStage, plot: Plot) -> None:
    """A lost little animal gives one clue; a first guess is wrong; the clue leads home."""
    row = stage.pick(plot.rows["young"])
    stage.friend("b")
    stage.fill(**row)
    stage.fill(wrong=stage.pick(plot.lists["wrong_guesses"]), spot=stage.spots(1)[0])


def prepare_delivery(stage: StoryStage, plot: Plot) -> None:
    """A parcel must reach somebody far away; two obstacles stand in the way."""
    row = stage.pick(plot.rows["parcels"])
    one, two = stage.rng.sample(plot.rows["obstacles"], 2)
    stage.friend("b")
    stage.fill(**row, parcel_the="the " + row["parcel"].split(" ", 1)[1])
    stage.fill(receiver=stage.pick(plot.lists["receivers"]))
    stage.fill(**{f"{name}_one": text for name, text in one.items()})
    stage.fill(**{f"{name}_two": text for name, text in two.items()})
    stage.fill(food=stage.pick(FOODS))


def prepare_greed(stage: StoryStage, plot: Plot) -> None:
    """{a} takes all of it and loses all of it; {b} has little and shares it."""
    stage.avoid("kind", "gentle", "polite", "thoughtful")
    row = stage.pick(plot.rows["treasures"])
    stage.friend("b")
    stage.fill(**row, few=stage.pick(plot.lists["few"]))


def prepare_snow(stage: StoryStage, plot: Plot) -> None:
    """A snowman's nose is eaten; the thief was hungry; a better nose is found."""
    row = stage.pick(plot.rows["noses"])
    others = [other["nose"] for other in plot.rows["noses"] if other["nose"] != row["nose"]]
    new_nose = stage.pick(others)
    stage.friend("b")
    stage.fill(**row, thief_short="the " + row["thief"].split()[-1], new_nose=new_nose)
    stage.fill(crown=stage.pick(plot.lists["crowns"]), food=stage.pick(FOODS))


# In an order that the corpus depends on.
PREPARE: Mapping[str, Callable[[StoryStage, Plot], None]] = {
    "lost": prepare_lost,
    "stuck": prepare_stuck,
    "honest": prepare_honest,
    "repair": prepare_repair,
    "fear": prepare_fear,
    "sharing": prepare_sharing,
    "newcomer": prepare_newcomer,
    "race": prepare_race,
    "noise": prepare_noise,
    "sleepless": prepare_sleepless,
    "storm": prepare_storm,
    "wish": prepare_wish,
    "present": prepare_present,
    "baking": prepare_baking,
    "skill": prepare_skill,
    "seed": prepare_seed,
    "little one": prepare_little_one,
    "delivery": prepare_delivery,
    "greed": prepare_greed,
    "snow": prepare_snow,
}
