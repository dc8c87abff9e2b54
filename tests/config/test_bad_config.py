"""Settings that cannot be: each mistake is one line that names its place and what to type."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.bad_cases import TRAIN, Case, check, file, put, table

from ys_llm.cli.main import main
from ys_llm.config.schema import TokenizerConfig
from ys_llm.data.tokenizer import SMALLEST_VOCAB
from ys_llm.errors import EXIT_USAGE

FOX = "The fox saw the hen.\n" * 40


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_as_they_were: None) -> Path:
    """A current folder that holds another run, and no setting of the user's in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("YS_"):
            monkeypatch.delenv(name)
    put("runs/other/model.safetensors", "weights of somebody's weeks")
    put("runs/other/config.yaml", "run: other\n")
    return tmp_path


# --- configurations ---

SHOW = ("config", "show", "--config", "x.yaml")


def config(text: str | bytes) -> Callable[[], None]:
    return file("x.yaml", text)


def bad(note: str, text: str | bytes, *says: str, problems: int = 1) -> Case:
    """A configuration file with one mistake."""
    return Case(note, SHOW, says, config(text), EXIT_USAGE, problems)


def bad_set(note: str, *changes: str, says: tuple[str, ...], problems: int = 1) -> Case:
    """Settings on the command line that cannot be."""
    words = tuple(word for change in changes for word in ("--set", change))
    return Case(note, ("config", "show", *words), says, code=EXIT_USAGE, problems=problems)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIGS = (
    Case(
        "no file", SHOW, ("x.yaml does not exist", "Give the path of a YAML file"), code=EXIT_USAGE
    ),
    Case(
        "a folder as the file",
        SHOW,
        ("x.yaml cannot be read: Is a directory", "Give the path of a YAML file"),
        lambda: Path("x.yaml").mkdir(),
        EXIT_USAGE,
    ),
    Case(
        "an endless file",
        SHOW,
        ("x.yaml has more than 10 MB", "Give the path of a YAML file"),
        lambda: Path("x.yaml").symlink_to("/dev/zero"),
        EXIT_USAGE,
    ),
    bad("latin-1 file", b"run: d\xe9j\xe0\n", "x.yaml is not UTF-8 text", "Save it as UTF-8"),
    bad("binary file", b"run: a\x00b\n", "x.yaml", "not valid YAML"),
    bad("wrong type", "train:\n  seed: many\n", "x.yaml:2: train.seed must be an integer", "many"),
    bad("true for a number", "train: {max_steps: yes}", "must be an integer, found true"),
    bad("text in a list", "data: {path: [a, b]}", 'data.path must be text, found ["a", "b"]'),
    bad("number as text", "run: 7", "run must be text, found 7", "Put it in quotes"),
    bad("list for a section", "train: [1]", "x.yaml:1: train must be a mapping", "found [1]"),
    bad("a word for a section", "model: big", "model must be a mapping", 'found "big"'),
    bad("a bare word", "hello", "x.yaml:1: expected NAME: VALUE lines"),
    bad("a list", "- 1\n- 2\n", "x.yaml:1: expected NAME: VALUE lines"),
    bad("unknown field", "train: {sed: 1}", "train.sed is not a field. Did you mean seed?"),
    bad("misspelt section", "trian: {seed: 1}", "trian is not a field. Did you mean train?"),
    bad("field in the wrong section", "seed: 1", "Did you mean train.seed or generate.seed?"),
    bad("misspelt choice", "train: {schedule: cosin}", "linear, cosine", "Did you mean cosine?"),
    bad("given twice", "run: a\nrun: b\n", "x.yaml:2: run is given twice, first in line 1"),
    bad("a tab", "train:\n\tseed: 1\n", "x.yaml:2: not valid YAML", "tab", "spaces"),
    bad(
        "a tab after a name", "train:\n  seed:\t- 1\n", "x.yaml:2: not valid YAML", "tab", "spaces"
    ),
    bad("an octal number", "train: {max_steps: 0100}", "train.max_steps is written 0100", "64"),
    bad("a number in base 60", "train: {max_steps: 1:30}", "is written 1:30", "reads as 90"),
    bad("a merge key", "a: &a {seed: 1}\ntrain:\n  <<: *a\n", "x.yaml:3: << is not", problems=2),
    bad("another word for it", "train: {device: gpu}", 'found "gpu". Did you mean cuda?'),
    bad("an open bracket", "train: {seed: 1", "x.yaml", "not valid YAML"),
    bad("two documents", "run: a\n---\nrun: b\n", "x.yaml", "not valid YAML"),
    bad("a tag", "run: !!python/object/apply:os.system ['touch owned']\n", "has the tag"),
    bad("a tag on a section", "!!python/object:os.x {run: a}\n", "x.yaml:1:", "has the tag"),
    bad("an unknown alias", "run: *x", "x.yaml:1: not valid YAML: found undefined alias"),
    bad("a section within itself", "model: &m {options: *m}", "contains itself"),
    bad("a billion laughs", LAUGHS, "x.yaml holds more than 100,000 values", "without aliases"),
    bad("brackets without end", "a: " + "[" * 100_000, "x.yaml", "nested too deeply"),
    bad(
        "a number of 5,000 digits",
        "train: {seed: " + "9" * 5000 + "}",
        "train.seed must be",
        "999...",
    ),
    bad("a hexadecimal one", "train: {seed: 0x" + "f" * 5000 + "}", "thousands of digits"),
    bad("not a number", "train: {learning_rate: .nan}", "must be a finite number, found NaN"),
    bad("infinite", "train: {learning_rate: .inf}", "must be a finite number, found Infinity"),
    bad("beyond a float", "train: {learning_rate: 1e999}", "must be a finite number"),
    bad("negative", "train: {max_steps: -5}", "train.max_steps must be at least 1, found -5"),
    bad("zero", "train: {batch_size: 0}", "train.batch_size must be at least 1, found 0"),
    bad("a share above 1", "data: {validation_fraction: 5}", "must be below 1.0, found 5"),
    bad("beyond 64 bits", "train: {warmup_steps: 1" + "0" * 30 + "}", "must be at most", "found 1"),
    bad("no room for the bytes", "tokenizer: {vocab_size: 257}", "at least 258, found 257"),
    bad(
        "stage with a gap", "train:\n  stages: [{seq_len: 8, steps: 2}]\n", "batch_size is missing"
    ),
    bad(
        "five mistakes at once",
        "train:\n  sed: 1\n  seed: x\nmodel:\n  d_model: 0\nrun: 1\nrun: 2\n",
        *("x.yaml:2:", "x.yaml:3:", "x.yaml:5:", "x.yaml:6:", "x.yaml:7:"),
        problems=5,
    ),
    bad(
        "a final rate above the peak",
        "train:\n  learning_rate: 0.001\n  final_learning_rate: 0.1\n",
        *("x.yaml:3: train.final_learning_rate is 0.1", "learning_rate, 0.001"),
        "--set train.final_learning_rate=",
    ),
    bad(
        "a warm-up longer than the run",
        "train:\n  max_steps: 100\n  warmup_steps: 200\n",
        *("x.yaml:3: train.warmup_steps is 200", "100 steps", "--set train.warmup_steps=10"),
    ),
    bad(
        "a cool-down where there is none",
        "train:\n  schedule: cosine\n  cooldown_fraction: 0.5\n",
        *("x.yaml:3: train.cooldown_fraction is 0.5", "cosine", "constant_sqrt_cooldown"),
    ),
    bad(
        "stages and steps",
        "train:\n  stages: [{seq_len: 8, batch_size: 2, steps: 3}]\n  max_steps: 100\n",
        *("x.yaml:3: train.max_steps is 100", "train.stages decide, with steps 3 in total"),
    ),
    bad(
        "minutes and steps",
        "train:\n  minutes: 5\n  max_steps: 100\n",
        *("x.yaml:2: train.minutes is 5.0, and train.max_steps is 100", "Remove one of the two"),
    ),
    bad(
        "a size and a rate",
        "model:\n  size: small\ntrain:\n  learning_rate: 0.1\n",
        "x.yaml:4: train.learning_rate is 0.1, and model.size is small, which sets it",
    ),
    bad(
        "adapters without fine-tuning",
        "sft:\n  lora: {rank: 4}\n",
        *("x.yaml:2: sft.lora.rank is 4, and sft.method is none", "--set sft.method=full"),
    ),
    bad(
        "replay beside a state",
        "sft:\n  method: state\n  replay: 0.1\n",
        *("x.yaml:3: sft.replay is 0.1", "sft.method: state", "--set sft.replay=0"),
    ),
    bad(
        "replay beside preferences",
        "sft:\n  method: full\n  objective: preferences\n  replay: 0.1\n",
        *("x.yaml:4: sft.replay is 0.1", "sft.objective: preferences"),
    ),
    bad(
        "a teacher beside a reference",
        "train:\n  teacher: a\n  reference_run: b\n  select_fraction: 0.5\n",
        *("x.yaml:2: train.teacher is a", "train.reference_run is b", "cannot be combined"),
    ),
    bad("targets that are none", "sft: {lora: {targets: []}}", "must name at least one matrix"),
    bad("no minutes", "train: {minutes: 0}", "train.minutes must be above 0.0, found 0"),
    bad(
        "an evaluation every step and a half",
        "train: {eval_interval: 1.5}",
        *("eval_interval must be a whole number of steps, or a share of them below 1", "1.5"),
    ),
    bad("no evaluation", "train: {eval_interval: 0}", "train.eval_interval must be above 0"),
    Case(
        "steps typed over stages",
        (*SHOW, "--set", "train.batch_size=8"),
        ("--set: train.batch_size is 8", "train.stages", "--set 'train.stages="),
        config("train: {stages: [{seq_len: 8, batch_size: 2, steps: 3}]}"),
        EXIT_USAGE,
    ),
    bad_set(
        "minutes and steps, both typed",
        *("train.minutes=5", "train.max_steps=100"),
        says=("--set: train.minutes is 5.0, and train.max_steps is 100",),
    ),
    bad_set("an unknown size", "model.size=smal", says=("model.size must be", "mean small?")),
    bad_set("a size that is no text", "model.size=3", says=("model.size must be text or null",)),
    bad_set(
        "a width beside a size",
        *("model.size=small", "model.d_model=3"),
        says=("--set: model.d_model is 3, and model.size is small", "Remove one of the two"),
    ),
    bad_set(
        "a size without its minutes",
        "model.size=auto",
        says=("--set: model.size is auto, which depends on train.minutes", "Type --minutes 30"),
    ),
    bad_set("seed beyond 64 bits", f"train.seed={10**30}", says=("train.seed must be at most",)),
    bad_set("a billion threads", f"train.threads={10**9}", says=("train.threads must be at most",)),
    bad_set(
        "a billion sequences", f"train.batch_size={10**9}", says=("batch_size must be at most",)
    ),
    bad_set("a vanishing rate", "train.learning_rate=1e-320", says=("must be at least 1e-30",)),
    bad_set("a billion layers", f"model.n_layers={10**9}", says=("n_layers must be at most",)),
    bad_set("no equals sign", "train.seed", says=("--set train.seed: expected NAME=VALUE",)),
    bad_set("no name", "=3", says=("--set =3: expected NAME=VALUE",)),
    bad_set("no value", "train.seed=", says=('train.seed must be an integer, found ""',)),
    bad_set("a section as a value", "train=5", says=("train must be a mapping",)),
    bad_set("below a value", "run.name=x", says=('run must be text, found {"name": "x"}',)),
    bad_set("a value that is no yaml", "run=[", says=("--set run", "not valid YAML")),
    bad_set("a run with a slash", "run=a/b", says=("run must be a folder name", "a/b")),
    bad_set("a run above", "run=..", says=("run must be a folder name", "..")),
    bad_set("a run without a name", "run=", says=("run must be a folder name",)),
    bad_set("a hidden run", "run=.x", says=("run must be a folder name",)),
    bad_set("a run of 300 letters", "run=" + "x" * 300, says=("run must be", "at most 60 letters")),
    bad_set("a run of two lines", 'run="a\\nb"', says=("run must be a folder name",)),
    bad_set("a data path with a NUL", 'data.path="a\\0b"', says=("data.path", "\\u0000")),
)


@table(*CONFIGS)
def test_a_bad_configuration_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    check(case, capsys)


def test_the_smallest_vocabulary_is_the_tokenizers() -> None:
    limits = TokenizerConfig.__dataclass_fields__["vocab_size"].metadata
    assert limits["minimum"] == SMALLEST_VOCAB


@pytest.mark.parametrize(
    ("minutes", "says"),
    [
        ("0", "train.minutes must be above 0.0, found 0"),
        ("-3", "train.minutes must be above 0.0, found -3"),
        ("abc", 'train.minutes must be a finite number or null, found "abc"'),
        ("", 'train.minutes must be a finite number or null, found ""'),
        (".nan", "train.minutes must be a finite number or null, found NaN"),
        ("1e9", "train.minutes must be at most 527040, found 1000000000.0"),
        ("1:30", "is written 1:30, which YAML 1.1 reads as 90"),
        ("[", "not valid YAML"),
    ],
)
def test_minutes_that_cannot_be_are_one_line(
    minutes: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("", (*TRAIN, f"--minutes={minutes}"), ("--minutes", says), code=EXIT_USAGE)
    check(replace(case, words=without_steps(case.words)), capsys)


def without_steps(words: tuple[str, ...]) -> tuple[str, ...]:
    """These words without `--set train.max_steps=N`."""
    (at,) = (i for i, word in enumerate(words) if word.startswith("train.max_steps="))
    return words[: at - 1] + words[at + 1 :]


def test_minutes_beside_typed_steps_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    says = ("--minutes: train.minutes is 5.0, and train.max_steps is 6", "Remove one of the two")
    check(Case("", (*TRAIN, "--minutes", "5"), says, code=EXIT_USAGE), capsys)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("YS_TRAIN__SEDE", "1", "YS_TRAIN__SEDE: train.sede is not a field. Did you mean seed?"),
        ("YS_TRAIN__SEED", "x", 'YS_TRAIN__SEED: train.seed must be an integer, found "x"'),
        ("YS_TRAIN", "1", "YS_TRAIN: train must be a mapping"),
        ("YS_TRAIN__", "1", "YS_TRAIN__"),
        ("YS_RUN", "a/b", "YS_RUN: run must be a folder name"),
        ("YS_TRAIN_SEED", "1", "YS_TRAIN_SEED is not a setting. Did you mean YS_TRAIN__SEED?"),
        ("YS_LEARNING_RATE", "1", "Did you mean YS_TRAIN__LEARNING_RATE?"),
        ("YS_MODLE__D_MODEL", "1", "Did you mean YS_MODEL__D_MODEL?"),
        ("YS_DATA__PATH", "caf\udce9", "YS_DATA__PATH"),
    ],
)
def test_a_bad_variable_is_named(
    name: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    check(Case("", ("config", "show"), (says,), code=EXIT_USAGE), capsys)


@pytest.mark.parametrize("name", ["YS_", "YS_HOME", "YS_SOMETHING", "YS_WEATHER_KEY"])
def test_a_variable_of_somebody_else_is_only_warned_of(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "1")
    assert main(["config", "show"]) == 0
    assert capsys.readouterr().err == f"ys: {name} is not a setting and is ignored\n"


@pytest.mark.parametrize(
    "name", ["YS_DEBUG", "YS_CACHE_DIR", "YS_CPU_LEVEL", "YS_STATE_DIR", "YS_LOG"]
)
def test_a_variable_that_is_used_elsewhere_is_not_warned_of(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "0")
    assert main(["config", "show"]) == 0
    assert capsys.readouterr().err == ""


def train_set(note: str, *changes: str, says: tuple[str, ...], code: int = EXIT_USAGE) -> Case:
    """A configuration that can be read and not be trained."""
    words = tuple(word for change in changes for word in ("--set", change))
    return Case(note, (*TRAIN, *words), says, file("texts/a.txt", FOX), code)


ATTENTION = "model.layers=[softmax_attention]"
UNTRAINABLE = (
    train_set(
        "heads that do not divide",
        *(ATTENTION, "model.options.softmax_attention={n_heads: 3}"),
        says=("n_heads", "3", "16"),
    ),
    train_set(
        "an odd width for heads",
        *(ATTENTION, "model.d_model=15", "model.options.softmax_attention={n_heads: 5}"),
        says=("n_heads", "15"),
    ),
    train_set(
        "a mixer that is none",
        "model.layers=[mamba]",
        says=("model.layers", "mamba", "three_tier"),
    ),
    train_set(
        "an unknown option",
        "model.options.three_tier.d_sate=3",
        says=("d_sate", "Did you mean d_state?"),
    ),
    train_set(
        "a state of no width",
        "model.options.three_tier.d_state=0",
        says=("d_state must be at least 1",),
    ),
    train_set(
        "an absurd option",
        f"model.options.three_tier.d_state={10**30}",
        says=("d_state must be at most",),
    ),
    train_set("an unknown kernel", "train.backend.three_tier=fast", says=("backend", "fast")),
    train_set(
        "a model wider than any memory",
        *("model.d_model=100000", "model.options.three_tier.d_state=1000000"),
        says=("memory",),
    ),
    train_set(
        "a batch larger than any memory",
        *("train.batch_size=1000000", "train.seq_len=256", "data.validation_fraction=0"),
        says=("memory", "train.batch_size"),
    ),
)


@table(*UNTRAINABLE)
def test_what_cannot_be_trained_is_refused_before_it_is_begun(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, capsys)
