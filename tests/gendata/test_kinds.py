"""Kind files: strict reading, the plan that follows from them, and every file that is shipped."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.cli.main import main
from ys_llm.data.records import Record
from ys_llm.errors import UserError
from ys_llm.gendata.recipes import items
from ys_llm.gendata.recipes.combinations import combination
from ys_llm.gendata.recipes.items import PlannedItem, item_at, plan_items
from ys_llm.gendata.recipes.load import find_recipes, load_recipe, load_recipes, read_topics
from ys_llm.gendata.recipes.recipe import AskStep, Recipe
from ys_llm.gendata.recipes.templates import fill, names_in

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs/gen/kinds"
TOPICS = ROOT / "configs/gen/topics"
KINDS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NEEDED = [
    "bedtime", "scenes", "shows", "campfire", "child", "stories", "summaries", "paraphrase",
    "slice_of_life", "poems", "songs", "podcast", "debate", "history", "wiki", "blog", "eli5",
    "explain", "howto", "textbook", "examples", "synonyms", "spelling", "food", "book_facts",
    "movie_facts", "trivia", "common_sense", "fill_in_the_blank", "instructions", "jokes",
    "sentiment", "python", "regex", "sql", "format", "extract", "maths",
]  # fmt: skip
SMALL = """
description: a small kind
slots:
  animal: animals.txt
  place: [in a wood, by a river]
  age: {low: 3, high: 5}
ask:
  - name: title
    prompts: ["Name a story about {an animal} {place}.", "A title for {an animal}, please."]
    take: line
    sampling: {num_predict: 20}
  - prompts: ["Tell {title}."]
output:
  prompts: ["Tell me, I am {age}, about {an animal} {place}."]
count: 4
""".replace("{an animal}", "{a animal}")


def write(folder: Path, text: str = SMALL, name: str = "small.yaml") -> Path:
    (folder / "animals.txt").write_text("fox\nowl\n# a comment\n\nape\n", "utf-8")
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    return load_recipe(write(tmp_path))


def slots_of(kind: Recipe, count: int, *, seed: int = 1) -> list[tuple[str, ...]]:
    return [tuple(item.slots.values()) for item in plan_items(kind, seed=seed, count=count)]


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(write(folder, text))
    assert error.value.exit_code == 2
    return str(error.value)


# The order of combinations.


@given(st.lists(st.integers(1, 6), max_size=4), st.text(max_size=3))
def test_every_combination_comes_once_in_each_round(sizes: list[int], key: str) -> None:
    every = sorted(itertools.product(*(range(size) for size in sizes)))
    for turn in range(2):
        indices = range(turn * len(every), (turn + 1) * len(every))
        assert sorted(tuple(combination(i, sizes, key)) for i in indices) == every


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.text(max_size=3))
def test_the_longest_list_is_used_up_before_a_value_returns(sizes: list[int], key: str) -> None:
    longest = max(sizes)
    place = sizes.index(longest)
    first = [combination(i, sizes, key)[place] for i in range(longest)]
    assert sorted(first) == list(range(longest))


def test_the_billionth_item_is_as_quick_as_the_first() -> None:
    sizes = [100_000, 100_000, 7]
    assert combination(10**9, sizes, "a") != combination(10**9 + 1, sizes, "a")


# The plan.


def test_no_combination_returns_before_all_have_come(small: Recipe) -> None:
    assert small.combinations == 3 * 2 * 3
    assert set(Counter(slots_of(small, 18)).values()) == {1}
    assert set(Counter(slots_of(small, 36)).values()) == {2}


def test_an_item_depends_on_seed_kind_and_index_alone(small: Recipe, tmp_path: Path) -> None:
    again = load_recipe(tmp_path / "small.yaml")
    assert list(plan_items(small, seed=7)) == list(plan_items(again, seed=7))
    assert item_at(small, 11, seed=7) == list(plan_items(small, seed=7, count=12))[11]
    assert len(list(plan_items(small, seed=7))) == 4


def test_another_seed_gives_another_order_and_other_keys(small: Recipe) -> None:
    assert slots_of(small, 18, seed=1) != slots_of(small, 18, seed=2)
    keys = [item.key for seed in (1, 2) for item in plan_items(small, seed=seed, count=18)]
    assert len(set(keys)) == len(keys)


def test_sampling_draws_every_slot_by_itself(tmp_path: Path) -> None:
    drawn = slots_of(load_recipe(write(tmp_path, SMALL + "combine: sample\n")), 200)
    assert len(set(drawn)) == 18
    assert len(set(drawn[:18])) < 18


@pytest.mark.parametrize("change", ["count: 9", "description: b", "max_tries: 5", "# a comment"])
def test_what_no_record_shows_leaves_the_keys_alone(
    small: Recipe, tmp_path: Path, change: str
) -> None:
    name = change.split(":")[0]
    kept = [line for line in SMALL.splitlines() if not line.startswith(f"{name}:")]
    other = load_recipe(write(tmp_path, "\n".join([*kept, change])))
    assert other.digest == small.digest
    assert item_at(other, 2, seed=1) == item_at(small, 2, seed=1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Tell {title}.", "Tell {title}!"),
        ("[in a wood,", "[in the wood,"),
        ("count: 4", "model: b"),
    ],
)
def test_what_a_record_shows_gives_new_keys(
    small: Recipe, tmp_path: Path, old: str, new: str
) -> None:
    other = load_recipe(write(tmp_path, SMALL.replace(old, new)))
    assert other.digest != small.digest


def test_a_topic_file_is_part_of_the_kind(small: Recipe, tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "animals.txt").write_text("fox\nowl\nemu\n", "utf-8")
    assert load_recipe(path).digest != small.digest


def test_another_model_makes_other_items(small: Recipe) -> None:
    assert small.with_model("llama3.1").digest == small.digest
    assert small.with_model("qwen3").digest != small.digest


# Slots.


def test_two_slots_from_one_list_are_never_the_same(tmp_path: Path) -> None:
    text = SMALL.replace("animal: animals.txt", '"animal, friend": {file: animals.txt, choose: 2}')
    kind = load_recipe(write(tmp_path, text.replace("{place}", "{place} and {friend}")))
    pairs = {
        (item.slots["animal"], item.slots["friend"]) for item in plan_items(kind, seed=1, count=36)
    }
    assert pairs == set(itertools.permutations(("fox", "owl", "ape"), 2))


def test_the_columns_of_a_line_stay_together(tmp_path: Path) -> None:
    text = SMALL.replace("animal: animals.txt", '"animal, sound": [fox | yap, owl | hoot]')
    kind = load_recipe(write(tmp_path, text.replace("{place}", "{place} {sound}")))
    pairs = {
        (item.slots["animal"], item.slots["sound"]) for item in plan_items(kind, seed=1, count=12)
    }
    assert pairs == {("fox", "yap"), ("owl", "hoot")}


# Templates.


def test_slots_are_filled_and_never_read_again() -> None:
    assert fill("{a b} in {{c}}", {"b": "{d}"}) == "a {d} in {c}"


def test_an_article_fits_its_word() -> None:
    assert fill("{a b}, {a c}. {A b}", {"b": "owl", "c": "fox"}) == "an owl, a fox. An owl"


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a.b}", "{a!r}", "{a:9}", "{0}", "{the a}"])
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        names_in(template)


@given(st.text(), st.text())
def test_any_text_can_be_filled_in(before: str, value: str) -> None:
    escaped = before.replace("{", "{{").replace("}", "}}")
    assert fill(escaped + "{x}", {"x": value}) == before + value


# From an item to a record.


def test_a_step_sees_the_answers_before_it(small: Recipe) -> None:
    item = item_at(small, 0, seed=1)
    prompt, system = items.prompt_of(small.spec.ask[1], item, {"title": "The Fox"})
    assert (prompt, system) == ("Tell The Fox.", "")
    made = items.record_of(small, item, {"title": "The Fox", "answer": "Once."})
    assert made.response == "Once."
    assert item.slots["place"] in made.prompt


def test_both_templates_of_a_step_are_used(small: Recipe) -> None:
    step = small.spec.ask[0]
    asked = [items.prompt_of(step, item, {})[0] for item in plan_items(small, seed=1, count=18)]
    assert 0 < sum(prompt.endswith("please.") for prompt in asked) < 18


def test_every_attempt_has_a_seed_of_its_own_and_all_options(small: Recipe) -> None:
    item = item_at(small, 0, seed=1)
    sent = [
        items.options_of(small, step, item, attempt=i) for step in small.spec.ask for i in range(3)
    ]
    assert len({options["seed"] for options in sent}) == 6
    assert all(0 <= options["seed"] < 2**31 for options in sent)
    names = {"temperature", "top_k", "top_p", "num_predict", "num_ctx", "seed"}
    assert all(set(options) == names for options in sent)
    assert [options["num_predict"] for options in sent] == [20] * 3 + [1024] * 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('"The Last Lamp"', "The Last Lamp"),
        ("Here is a title:\n\n**The Last Lamp**\nIt is about a lamp.", "The Last Lamp"),
        ("1. The Last Lamp\n2. The First", "The Last Lamp"),
        ("# Title: “The Last Lamp”", "The Last Lamp"),
        ("- *The Last Lamp*", "The Last Lamp"),
        ("2001: a story", "2001: a story"),
        ("\n \n", ""),
        ("Why?", "Why?"),
    ],
)
def test_a_line_is_taken_bare_of_decoration(text: str, line: str) -> None:
    assert items.extract(AskStep(("x",), take="line"), text) == line


def test_a_whole_answer_is_taken_as_it_is() -> None:
    assert items.extract(AskStep(("x",)), " **a**\n\nb \n") == "**a**\n\nb"


# Reading.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 4", "cuont: 4", "cuont is not a field. Did you mean count?"),
        ("count: 4", "count: 0", "count must be at least 1"),
        ("Tell {title}.", "Tell {titel}.", "ask.1.prompts.0 uses {titel}"),
        ("Tell {title}.", "Tell {title", "ask.1.prompts.0: "),
        ("about {a animal} {place}.", "about {a animal} {answers}.", "output.prompts.0 uses"),
        ("I am {age}", "I am here", "slots.age is not used"),
        ("animals.txt", "animal.txt", "animal.txt cannot be read: No such file"),
        ("[in a wood, by a river]", "[in a wood, in a wood]", "'in a wood' appears twice"),
        ("[in a wood, by a river]", "[]", "there are no topics"),
        ("{low: 3, high: 5}", "{low: 3}", "slots.age"),
        ("{low: 3, high: 5}", "{low: 5, high: 3}", "slots.age"),
        (
            "place: [in a wood, by a river]",
            '"animal, place": [a | b, c | d]',
            "slots.animal is defined twice",
        ),
        ("name: title", "name: animal", "there is a slot animal already"),
        (
            "{num_predict: 20}",
            "{num_predict: 5000}",
            "num_predict 5000 leaves no space for a prompt in num_ctx 4096",
        ),
        ("{num_predict: 20}", "{heat: 1}", "ask.0.sampling: heat is not a field"),
        ("count: 4", "verifiers: {wordz: {}}", "wordz is not a verifier. Did you mean words?"),
        (
            "count: 4",
            "verifiers: {words: {lest: 1}}",
            "words.lest is not a setting. Did you mean least?",
        ),
        ("count: 4", "verifiers: {words: {least: many}}", "least must be an integer"),
        ("count: 4", "verifiers: {speakers: {names: [bob]}}", "there is no slot bob"),
        ("count: 4", "backend: chain", "program must be one of constraints, sql_table, story"),
        ("count: 4", "program: story", "program has no effect"),
        ("description: a small kind", "", "description is missing"),
    ],
)
def test_a_wrong_kind_file_is_refused_with_its_problem(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    told = refusal(tmp_path, SMALL.replace(old, new))
    assert message in told
    assert "small.yaml" in told


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    told = refusal(tmp_path, SMALL.replace("Tell {title}.", "{b}").replace("{age}", "5"))
    assert len(told.splitlines()) == 2


def test_a_line_with_too_few_columns_is_named(tmp_path: Path) -> None:
    text = SMALL.replace("animal: animals.txt", '"animal, sound": [fox | yap, owl]')
    assert "'owl' does not have 2 columns" in refusal(tmp_path, text)


def test_a_topic_file_has_an_end(tmp_path: Path) -> None:
    endless = Path("/dev/zero")
    if endless.exists():
        with pytest.raises(ValueError, match="larger than 10 MB"):
            read_topics(endless)


def test_a_kind_made_by_a_program_asks_no_model(tmp_path: Path) -> None:
    assert "ask, slots and output must be left out" in refusal(
        tmp_path, SMALL + "backend: program\nprogram: units\n"
    )


def test_a_folder_without_kinds_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no kind files"):
            find_recipes([folder])


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_in_an_empty_folder_the_shipped_kinds_are_there(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gen-data", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == KINDS
    assert all("  shipped " in line for line in lines)


def test_own_kinds_add_to_the_shipped_ones_and_replace_them(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = empty_folder / "gen/kinds"
    own.mkdir(parents=True)
    write(own, name="small.yaml")
    shipped = (FOLDER / "jokes.yaml").read_text("utf-8")  # its topics are not copied
    (own / "jokes.yaml").write_text(shipped.replace("count: ", "count: 1"), "utf-8")
    assert main(["gen-data", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {*KINDS, "small"}
    assert "  gen/kinds  " in lines["small"]
    assert "  gen/kinds (replaces shipped)  " in lines["jokes"]
    assert "  shipped  " in lines["poems"]
    assert main(["gen-data", "--kind", "small,jokes", "--dry-run"]) == 0
    assert "--- small 0" in capsys.readouterr().out
    assert load_recipes(["jokes"])[0].spec.count > load_recipe(FOLDER / "jokes.yaml").spec.count


def test_unknown_kinds_are_all_named() -> None:
    with pytest.raises(UserError, match=r"no kind poem, sng\. The kinds are arithmetic, "):
        load_recipes(["poems", "poem", "sng"], [FOLDER])


def test_kinds_are_loaded_in_the_order_asked_for() -> None:
    assert [kind.name for kind in load_recipes(["songs", "poems", "songs"], [FOLDER])] == [
        "songs",
        "poems",
    ]


# The kinds that are shipped.


def test_every_planned_kind_is_shipped() -> None:
    assert set(NEEDED) - set(KINDS) == set()


@pytest.mark.parametrize("name", KINDS)
def test_a_shipped_kind_plans_different_items_with_every_slot_filled(name: str) -> None:
    kind = load_recipe(FOLDER / f"{name}.yaml")
    planned = list(plan_items(kind, seed=1, count=60))
    assert len({item.key for item in planned}) == 60
    if kind.slots:
        topics = {
            tuple(item.slots[n] for slot in kind.slots for n in slot.names) for item in planned
        }
        assert len(topics) == 60
    for item in planned[:10]:
        check_prompts(kind, item)


def check_prompts(kind: Recipe, item: PlannedItem) -> None:
    answers: dict[str, str] = {}
    for step in kind.spec.ask:
        prompt, _system = items.prompt_of(step, item, answers)
        assert prompt == prompt.strip()
        assert "{" not in prompt or "json" in prompt.lower()
        answers[step.name] = f"<{step.name}>"
    made = items.record_of(kind, item, answers)
    assert made.prompt and made.response


@pytest.mark.parametrize("name", KINDS)
def test_a_program_kind_passes_its_own_verifiers(name: str) -> None:
    kind = load_recipe(FOLDER / f"{name}.yaml")
    if kind.spec.backend == "program":
        for item in plan_items(kind, seed=2, count=60):
            assert items.verify(kind, items.record_of(kind, item, {}), {}) is None


@pytest.mark.parametrize("path", sorted(TOPICS.glob("*.txt")), ids=lambda path: path.stem)
def test_topic_files_hold_no_line_twice(path: Path) -> None:
    topics = read_topics(path)
    assert topics
    assert [line for line, times in Counter(map(str.lower, topics)).items() if times > 1] == []


def test_every_topic_file_is_used() -> None:
    text = "".join(path.read_text("utf-8") for path in FOLDER.glob("*.yaml"))
    assert [path.name for path in TOPICS.glob("*.txt") if f"topics/{path.name}" not in text] == []


def test_the_years_of_topics_are_years() -> None:
    for name, column in (("events", 1), ("books", 2), ("films", 1)):
        years = [int(line.split(" | ")[column]) for line in read_topics(TOPICS / f"{name}.txt")]
        assert all(1 <= year <= 2025 for year in years)


def test_the_explanation_is_the_response_and_the_wish_the_prompt() -> None:
    kind = load_recipe(FOLDER / "explain.yaml")
    item = item_at(kind, 0, seed=1)
    made = items.record_of(kind, item, {"answer": "Because it falls."})
    assert made.response == "Because it falls."
    assert item.slots["concept"] in made.prompt


def test_no_output_of_a_shipped_kind_holds_a_placeholder_in_brackets() -> None:
    for name in KINDS:
        output = load_recipe(FOLDER / f"{name}.yaml").spec.output
        assert not any("[" in text for text in (*output.prompts, output.response))


def test_the_facts_of_a_chain_follow_from_the_item() -> None:
    kind = load_recipe(FOLDER / "extract.yaml")
    first, again = (item_at(kind, 5, seed=3) for _ in range(2))
    assert first == again
    rows = json.loads(first.slots["rows"])
    assert not any(isinstance(value, bool) for row in rows for value in row.values())
    prose = ". ".join(f"{name} {value}" for row in rows for name, value in row.items())
    made = items.record_of(kind, first, {"prose": prose})
    assert items.verify(kind, made, {**first.slots, "prose": prose}) is None
    wrong = items.record_of(kind, first, {"prose": prose[: len(prose) // 2]})
    name, reason = items.verify(kind, wrong, first.slots) or ("", "")
    assert (name, "is not in the text" in reason) == ("facts_in_prose", True)


def test_the_constraints_of_instructions_can_be_obeyed_together() -> None:
    kind = load_recipe(FOLDER / "instructions.yaml")
    for item in plan_items(kind, seed=1, count=300):
        rules = {rule["rule"] for rule in json.loads(item.slots["constraints"])}
        assert rules
        assert "json" not in rules or rules <= {"json", "most_characters", "without_word"}
        assert not {"ends_with", "uppercase"} <= rules
        assert len(item.slots["wishes"].splitlines()) == len(rules)


def test_a_record_is_judged_by_the_verifiers_of_its_kind() -> None:
    kind = load_recipe(FOLDER / "synonyms.yaml")
    item = item_at(kind, 0, seed=1)
    word = item.slots["word"]
    assert items.verify(kind, Record("?", "one, two, three, four"), item.slots) is None
    rejected = items.verify(kind, Record("?", f"one, two, {word}"), item.slots)
    assert rejected is not None and rejected[0] == "absent"


def test_a_plan_uses_no_random_state_of_its_caller(small: Recipe) -> None:
    state = random.getstate()
    list(plan_items(small, seed=1, count=18))
    assert random.getstate() == state
