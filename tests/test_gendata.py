"""The generators: same bytes everywhere, right answers, and stories that read like stories."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import gendata_checker
import pytest
import yaml

from ys_llm.errors import UserError
from ys_llm.gendata import generate
from ys_llm.gendata.grammar import article, counted, expand, sentences, tidy
from ys_llm.gendata.recipe import Kinds, Recipe, load_recipe
from ys_llm.gendata.stories import PLOTS, Story, make_story
from ys_llm.gendata.write import MANIFEST, README, plan_files

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "training_data"
RECIPE = ROOT / "configs/gen/starter.yaml"
SMALL = "seed: 7\nkinds: {stories: 20, arithmetic: 20, spelling: 20, formats: 20, scenes: 20}\n"
FEMALE = re.compile(r"\b(?:she|her|hers|herself)\b", re.IGNORECASE)
MALE = re.compile(r"\b(?:he|him|his|himself)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def plan() -> dict[str, bytes]:
    return plan_files(load_recipe(RECIPE))


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return [make_story(random.Random(f"test:{index}")) for index in range(1000)]


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def without_quotations(text: str) -> str:
    return re.sub(r'"[^"]*"', "", text)


def masked(story: Story) -> str:
    """The story with its names replaced by roles: what is left is its wording."""
    text = story.text
    for role, person in story.cast.items():
        text = text.replace(person.name, role.upper())
    return text


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The corpus in the repository.


def test_training_data_is_what_its_recipe_makes(plan: dict[str, bytes]) -> None:
    assert content(CORPUS).keys() == plan.keys()
    assert [name for name, data in content(CORPUS).items() if data != plan[name]] == []


def test_the_built_in_recipe_is_the_starter_recipe() -> None:
    assert load_recipe(None) == load_recipe(RECIPE) == Recipe()


def test_a_second_program_derives_every_answer_of_training_data() -> None:
    counts = gendata_checker.check_folder(CORPUS)
    assert counts == yaml.safe_load(RECIPE.read_text())["kinds"]


def test_training_data_has_the_promised_size(plan: dict[str, bytes]) -> None:
    sizes = {name: len(data) for name, data in plan.items() if name not in (README, MANIFEST)}
    stories = sum(size for name, size in sizes.items() if name.startswith("stories"))
    assert 3e6 <= sum(sizes.values()) <= 6e6
    assert max(sizes.values()) <= 200_000
    assert sum(getattr(Kinds(), field.name) for field in fields(Kinds)) >= 10_000
    assert 0.6 <= stories / sum(sizes.values()) <= 0.75


def test_the_manifest_tells_hash_size_and_number_of_records() -> None:
    manifest = json.loads((CORPUS / MANIFEST).read_text())
    assert manifest["recipe"] == yaml.safe_load(RECIPE.read_text())
    for name, entry in manifest["files"].items():
        data = (CORPUS / name).read_bytes()
        assert len(entry["sha256"]) == 64
        assert entry["bytes"] == len(data)
        if name != README:
            assert entry["records"] == data.count(b"<end>\n\n")


# Running the generator.


def test_a_second_run_finds_nothing_to_do(small_recipe: Path, tmp_path: Path) -> None:
    first = generate(small_recipe, tmp_path / "out")
    before = content(tmp_path / "out")
    second = generate(small_recipe, tmp_path / "out")
    assert set(first.written) == set(before)
    assert second.written == ()
    assert "Nothing to do" in str(second)
    assert content(tmp_path / "out") == before


def test_the_seed_decides_the_bytes(small_recipe: Path, tmp_path: Path) -> None:
    generate(small_recipe, tmp_path / "a", seed=1)
    generate(small_recipe, tmp_path / "b", seed=1)
    generate(small_recipe, tmp_path / "c", seed=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a")["stories-01.md"] != content(tmp_path / "c")["stories-01.md"]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_bytes_do_not_depend_on_hashing_and_need_no_torch(
    small_recipe: Path, tmp_path: Path, hash_seed: str
) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from ys_llm.gendata import generate\n"
        "generate(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", script, str(small_recipe), str(tmp_path / "other")]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run(arguments, check=True, cwd=ROOT, env=environment)
    generate(small_recipe, tmp_path / "here")
    assert content(tmp_path / "other") == content(tmp_path / "here")


def test_an_edited_file_is_written_over_only_by_force(small_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(small_recipe, out)
    original = content(out)
    (out / "scenes-01.md").write_text("my own text")
    with pytest.raises(UserError, match=r"scenes-01\.md.*--force"):
        generate(small_recipe, out)
    assert (out / "scenes-01.md").read_text() == "my own text"
    assert generate(small_recipe, out, force=True).written == ("scenes-01.md",)
    assert content(out) == original


def test_a_new_recipe_replaces_old_files_and_leaves_yours(
    small_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    generate(small_recipe, out)
    (out / "mine.txt").write_text("mine")
    small_recipe.write_text(
        "kinds: {stories: 5, arithmetic: 5, spelling: 5, formats: 0, scenes: 5}"
    )
    assert generate(small_recipe, out).removed == ("formats-01.md",)
    assert (out / "mine.txt").read_text() == "mine"
    assert not (out / "formats-01.md").exists()


def test_a_recipe_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 1\nkinds:\n  storys: 3\n  scenes: -1\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert "stories" in str(caught.value) and "scenes" in str(caught.value)


def test_a_recipe_that_asks_for_too_much_says_how_much_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ys_llm.gendata.recipe.LONGEST_DROUGHT", 3)  # the real one takes 10 s
    path = tmp_path / "recipe.yaml"
    path.write_text("kinds: {stories: 0, arithmetic: 0, spelling: 30000, formats: 0, scenes: 0}")
    with pytest.raises(UserError, match="different records"):
        generate(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The checker itself must be able to fail.


@pytest.mark.parametrize(
    ("kind", "prompt", "response"),
    [
        ("arithmetic", "What is 2 + 2?", "Ones: 2 + 2 = 4. Write 4.\n2 + 2 = 5"),
        ("arithmetic", "What is 12 + 9?", "Ones: 2 + 9 = 11. Write 1, carry 1.\n12 + 9 = 21"),
        ("arithmetic", "Which number is larger, 12 or 9?",
         "12 has 2 digits.\nThe larger number is 9."),
        ("spelling", "Count the letter n in Nina.", "N-I-N-A\nThe letter n occurs 1 time."),
        ("spelling", "Count the letter a in Nina.", "N-I-N-A\nThe letter a occurs 1 times."),
        ("formats", "Write this table as json:\n\na,b\n1,true", '[{"a": 1, "b": "true"}]'),
        ("scenes", "The red cup is in the box. Mia takes the cup. Where is the cup now?",
         "The cup is in the box."),
    ],
)  # fmt: skip
def test_the_checker_rejects_wrong_answers(kind: str, prompt: str, response: str) -> None:
    with pytest.raises(gendata_checker.WrongError):
        gendata_checker.CHECKS[kind](prompt, response)


def test_the_checker_rejects_a_bad_story() -> None:
    good = " ".join(f"Mia saw {number} stars." for number in range(20))
    gendata_checker.check_stories("Tell me a story.", good)
    for bad in (
        f"{good} a owl came.",
        f"{good} Mia saw 3 stars.",
        f"{good} {{noun}}",
        f'{good} "Oh.',
    ):
        with pytest.raises(gendata_checker.WrongError):
            gendata_checker.check_stories("Tell me a story.", bad)


# Stories.


def test_there_are_many_plots_and_all_are_told(stories: list[Story]) -> None:
    assert len(PLOTS) >= 12
    assert {story.plot for story in stories} == {plot.name for plot in PLOTS}


def test_pronouns_agree_with_the_cast(stories: list[Story]) -> None:
    for story in stories:
        pronouns = {person.pronoun for person in story.cast.values()}
        told = without_quotations(story.text)
        assert pronouns & {"she"} or not FEMALE.search(told), story
        assert pronouns & {"he"} or not MALE.search(told), story


def test_they_takes_the_plural_verb(stories: list[Story]) -> None:
    assert any(person.pronoun == "they" for story in stories for person in story.cast.values())
    for story in stories:
        assert not re.search(r"\b(?:they was|she were|he were)\b", story.text, re.IGNORECASE)


def test_everybody_on_the_stage_is_in_the_story_and_names_differ(stories: list[Story]) -> None:
    for story in stories:
        names = [person.name for person in story.cast.values()]
        assert len(set(names)) == len(names)
        assert all(name in f"{story.prompt} {story.text}" for name in names), story


def test_a_prompt_agrees_with_its_story(stories: list[Story]) -> None:
    for story in stories:
        hero = story.cast["a"]
        kinds = re.findall(r"\b(?:who|named|in which)\b", story.prompt)
        if kinds and "with" not in story.prompt and not story.prompt.startswith("Continue"):
            assert f"{hero.trait} {hero.kind}" in story.prompt
        for name in re.findall(r"(?:named|with|and|about) ([A-Z]\w+)", story.prompt):
            assert name in story.text, story
        for thing in re.findall(r"a lost ([\w ]+)[.,]", story.prompt):
            assert thing in story.text, story


def test_things_stay_where_they_were_put(stories: list[Story]) -> None:
    for story in stories:
        for spot in story.where.values():
            mentions = len(re.findall(re.escape(spot), story.text, re.IGNORECASE))
            assert mentions >= (1 if story.plot == "lost" else 2), story
        if story.plot == "lost":
            (spot,) = story.where.values()
            assert re.search(rf"there, {spot}, (?:lay|was) the", story.text), story


def test_no_story_repeats_itself_or_leaves_a_gap(stories: list[Story]) -> None:
    for story in stories:
        gendata_checker.check_stories(story.prompt, story.text)


def test_stories_are_varied(stories: list[Story]) -> None:
    """Bounds lie a little off what was measured: 0.20, 0.39, 836 and 0.13."""
    texts = [masked(story) for story in stories]
    assert len(set(texts)) == len(texts)
    assert distinct_share(texts, 4) > 0.18
    assert distinct_share(texts, 8) > 0.35
    assert len({sentences(text)[0] for text in texts}) > 700
    assert mean_overlap(stories) < 0.15


def distinct_share(texts: list[str], n: int) -> float:
    """Different n-grams of words over all n-grams."""
    words = [text.split() for text in texts]
    grams = [gram for told in words for gram in zip(*(told[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams)


def mean_overlap(stories: list[Story]) -> float:
    """Mean Jaccard index of the sentences of two stories with the same plot."""
    plots: dict[str, list[set[str]]] = defaultdict(list)
    for story in stories:
        plots[story.plot].append(set(sentences(masked(story))))
    overlaps = [
        len(a & b) / len(a | b)
        for told in plots.values()
        for a, b in itertools.combinations(told[:40], 2)
    ]
    return sum(overlaps) / len(overlaps)


# The grammar.


def test_the_same_random_state_expands_to_the_same_text() -> None:
    slots = {"who": "[Mia|Tom]", "did": "ran[ away|]"}
    texts = {
        expand("{who} {did}.", slots, random.Random(f"{i}")) for i in range(50) for _ in range(2)
    }
    assert texts == {"Mia ran.", "Mia ran away.", "Tom ran.", "Tom ran away."}
    again = [expand("{who} {did}.", slots, random.Random("x")) for _ in range(3)]
    assert len(set(again)) == 1


@pytest.mark.parametrize("template", ["[a|b", "a]", "a|b"])
def test_a_malformed_template_is_an_error(template: str) -> None:
    with pytest.raises(ValueError):
        expand(template, {}, random.Random(0))


def test_english_is_put_right() -> None:
    assert tidy("a apple  fell . he saw an fox.") == "An apple fell. He saw a fox."
    assert tidy('she jumped up. "under the bed!"') == 'She jumped up. "Under the bed!"'
    assert [article(w) for w in ("hour", "unicorn", "owl", "useful", "fox")] == (
        ["an", "a", "an", "a", "a"]
    )
    assert [counted(n, "time") for n in (0, 1, 2)] == ["0 times", "1 time", "2 times"]
    assert counted(3, "berry") == "3 berries"
