"""The strict reader, the sources of a configuration and their order, on real YAML files."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ys_llm.config.schema import (
    Config,
    DataConfig,
    GenerateConfig,
    ModelConfig,
    Stage,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    in_steps,
)
from ys_llm.config.sources import (
    annotated_yaml,
    from_mapping,
    load_config,
    load_dataclass,
    to_mapping,
    to_yaml,
)
from ys_llm.config.strict_reader import field_helps, parse_dataclass, setting
from ys_llm.config.yaml_io import dump_inline, dump_yaml, parse_yaml
from ys_llm.errors import EXIT_USAGE, UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(
    text: str,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """The lines of the error that this file causes, without the folder."""
    with pytest.raises(UserError) as caught:
        load_config(write(folder, text), overrides=overrides, environment=environment)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value).replace(f"{folder}/", "").splitlines()


# --- every valid configuration survives being written and read ---

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
mixers = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fractions = st.floats(0, 1, exclude_max=True)
counts = st.integers(1, 10**12)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
naturals = st.integers(0, 2**63 - 1)
batches = st.integers(1, 1 << 20)
stages = st.builds(Stage, counts, batches, counts)
configs = st.builds(
    Config,
    run=st.from_regex(r"\w[\w.-]{0,59}", fullmatch=True),
    data=st.builds(
        DataConfig,
        path=texts.filter(lambda path: path and "\0" not in path),
        validation_fraction=fractions,
    ),
    tokenizer=st.builds(TokenizerConfig, vocab_size=st.integers(258, 10**6)),
    model=st.builds(
        ModelConfig,
        d_model=st.integers(1, 10**6),
        n_layers=st.integers(3, 1000),
        d_mlp=st.integers(0, 10**6),
        dropout=fractions,
        layers=st.lists(mixers, min_size=1, max_size=3).map(tuple),
        options=st.dictionaries(
            mixers, st.dictionaries(texts, json_values, max_size=4), max_size=3
        ),
    ),
    train=st.builds(
        TrainConfig,
        **{name: counts for name in ("max_steps", "seq_len", "grad_accum_steps")},
        batch_size=batches,
        minutes=st.none() | st.floats(1e-3, 1e5),
        **{name: counts | shares for name in ("eval_interval", "checkpoint_interval")},
        **{name: naturals | shares for name in ("warmup_steps", "sample_interval")},
        eval_tokens=naturals,
        **{name: naturals for name in ("patience", "seed")},
        threads=st.integers(0, 1024),
        **{name: fractions for name in ("beta1", "beta2", "cooldown_fraction", "weight_decay")},
        **{name: fractions for name in ("final_learning_rate", "grad_clip")},
        learning_rate=st.floats(1e-30, allow_infinity=False),
        stages=st.lists(stages, max_size=3).map(tuple),
        sample_prompt=texts,
        backend=st.dictionaries(mixers, texts, max_size=2),
    ),
    generate=st.builds(
        GenerateConfig,
        temperature=fractions,
        top_k=naturals,
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=fractions,
        repetition_penalty=st.floats(0, exclude_min=True, allow_infinity=False),
        max_tokens=naturals,
        seed=st.none() | naturals,
    ),
)


@settings(max_examples=100, deadline=None)
@given(configs)
def test_a_configuration_survives_mapping_json_and_yaml(config: Config) -> None:
    assert from_mapping(to_mapping(config)) == config
    assert from_mapping(json.loads(json.dumps(to_mapping(config)))) == config
    assert from_mapping(parse_yaml(to_yaml(config), name="written").values) == config


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_plain_data_survives_yaml_in_a_block_and_on_one_line(value: Any) -> None:
    assert parse_yaml(dump_yaml(value), name="written").values == value
    line = dump_inline(value)
    assert "\n" not in line
    assert parse_yaml(line, name="written").values == value


def test_what_other_yaml_readers_see_is_the_same_configuration() -> None:
    assert yaml.safe_load(to_yaml(Config())) == to_mapping(Config())


def test_kinds_of_tokenizers_are_what_the_field_accepts() -> None:
    for kind in get_args(TokenizerKind):
        assert from_mapping({"tokenizer": {"kind": kind}}).tokenizer.kind == kind


# --- sources ---

SOURCES = [
    ("defaults", "", {}, [], 1337, "default"),
    ("file", "train:\n  seed: 1\n", {}, [], 1, "x.yaml:2"),
    ("environment", "train: {seed: 1}", {"YS_TRAIN__SEED": "2"}, [], 2, "YS_TRAIN__SEED"),
    ("lower case", "train: {seed: 1}", {"ys_train__seed": "2"}, [], 2, "ys_train__seed"),
    ("set", "train: {seed: 1}", {"YS_TRAIN__SEED": "2"}, ["train.seed=3"], 3, "--set"),
    ("set twice", "", {}, ["train.seed=3", "train.seed=4"], 4, "--set"),
    ("a whole section", "train: {seed: 1}", {"YS_TRAIN": "{seed: 2}"}, [], 2, "YS_TRAIN"),
    ("a section set, then a field", "", {}, ["train={seed: 2}", "train.seed=5"], 5, "--set"),
    ("other programs' variables", "", {"YSTRAIN__SEED": "2", "YS_DEBUG": "1"}, [], 1337, "default"),
]


@pytest.mark.parametrize(
    ("text", "environment", "overrides", "seed", "origin"),
    [row[1:] for row in SOURCES],
    ids=[row[0] for row in SOURCES],
)
def test_later_sources_win(
    tmp_path: Path,
    text: str,
    environment: dict[str, str],
    overrides: list[str],
    seed: int,
    origin: str,
) -> None:
    path = write(tmp_path, text)
    resolved = load_config(path, overrides=overrides, environment=environment)
    assert resolved.config.train.seed == seed
    assert resolved.origins["train.seed"].replace(f"{tmp_path}/", "") == origin
    assert resolved.origins["train.max_steps"] == "default"


def test_without_a_file_there_are_the_defaults() -> None:
    resolved = load_config(None)
    assert resolved.config == Config()
    assert set(resolved.origins.values()) == {"default"}


def test_a_free_mapping_is_set_name_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  options:\n    mine:\n      d_state: 64\n      window: 8\n")
    resolved = load_config(
        path, overrides=["model.options.mine.d_state=512", "model.options.mine.a.b=3e-3"]
    )
    expected = {"d_state": 512, "window": 8, "a": {"b": 0.003}}
    assert resolved.config.model.options["mine"] == expected
    assert resolved.origins["model.options.mine.d_state"] == "--set"
    assert resolved.origins["model.options.mine.window"] == f"{path}:5"
    assert resolved.origins["model.options.mine.a.b"] == "--set"


def test_a_list_of_sections_is_read_and_replaces_the_single_stage(tmp_path: Path) -> None:
    text = "train:\n  stages:\n  - {seq_len: 64, batch_size: 16, steps: 10}\n"
    train = load_config(write(tmp_path, text)).config.train
    assert train.plan == train.stages == (Stage(seq_len=64, batch_size=16, steps=10),)
    assert train.total_steps == 10


def test_without_stages_the_plan_is_the_one_stage_of_the_three_fields() -> None:
    train = TrainConfig(seq_len=7, batch_size=3, max_steps=5)
    assert train.plan == (Stage(seq_len=7, batch_size=3, steps=5),)
    assert train.total_steps == 5


VALUES = [
    ("train.learning_rate=3e-3", 0.003),
    ("train.learning_rate=1E-4", 0.0001),
    ("train.learning_rate=1", 1.0),
    ("train.eval_tokens=200_000", 200_000),
    ("generate.seed=null", None),
    ("data.reset_at_document=false", False),
    ("train.sample_prompt=", ""),
    ("train.sample_prompt=a = b", "a = b"),
    ("train.sample_prompt=2024-01-31", "2024-01-31"),
    ("train.sample_prompt='3e-3'", "3e-3"),
]


@pytest.mark.parametrize(("override", "value"), VALUES)
def test_a_value_is_read_by_the_type_of_its_field(override: str, value: object) -> None:
    config = to_mapping(load_config(None, overrides=[override]).config)
    section, name = override.partition("=")[0].split(".")
    assert config[section][name] == value
    assert type(config[section][name]) is type(value)


def test_an_emptied_section_keeps_its_defaults(tmp_path: Path) -> None:
    text = "train:\n  # seed: 7\nmodel:\n  options:\n"
    assert load_config(write(tmp_path, text)).config == Config()


# --- what is shown is itself a configuration ---


def test_the_shown_configuration_reads_back_and_explains_itself(tmp_path: Path) -> None:
    path = write(
        tmp_path, "run: mine\nmodel: {options: {mine: {d_state: 64, tiers: {a.b: [1, x]}}}}\n"
    )
    resolved = load_config(path, overrides=['train.sample_prompt="two\\nlines # no comment"'])
    shown = annotated_yaml(resolved)
    assert load_config(write(tmp_path, shown)).config == resolved.config
    lines = {line.split("#")[0].strip(): line for line in shown.splitlines()}
    assert f"# {path}:1" in lines["run: mine"]
    assert f"# {path}:2" in lines["d_state: 64"]
    assert "# default" in lines["seed: 1337"]
    assert "initial weights, batch order and dropout" in lines["seed: 1337"]


def test_every_field_says_in_one_line_what_it_is() -> None:
    helps = field_helps(Config)
    sections = {"data", "tokenizer", "model", "train", "sft", "generate"}
    silent = [name for name, text in helps.items() if not text and name not in sections]
    assert silent == []
    assert all("\n" not in text for text in helps.values())


# --- mistakes ---

MISTAKES = [
    ("train: {lerning_rate: 1}", "train.lerning_rate is not a field. Did you mean learning_rate?"),
    ("learning_rate: 1", "learning_rate is not a field. Did you mean train.learning_rate?"),
    ("seed: 1", "seed is not a field. Did you mean train.seed or generate.seed?"),
    (
        "tokenizer: {zzz: 1}",
        "tokenizer.zzz is not a field. The fields here are kind, vocab_size, control_tokens.",
    ),
    ("train: {seed: x}", 'train.seed must be an integer, found "x"'),
    ("train: {seed: true}", "train.seed must be an integer, found true"),
    ("train: {seed: 1.0}", "train.seed must be an integer, found 1.0"),
    ("train: {seed: null}", "train.seed must be an integer, found null"),
    ("train: {grad_clip: true}", "train.grad_clip must be a finite number, found true"),
    ("train: {grad_clip: .nan}", "train.grad_clip must be a finite number, found NaN"),
    ("train: {grad_clip: .inf}", "train.grad_clip must be a finite number, found Infinity"),
    ("train: {learning_rate: 0}", "train.learning_rate must be at least 1e-30, found 0"),
    ("train: {seq_len: 0}", "train.seq_len must be at least 1, found 0"),
    ("data: {validation_fraction: 1}", "data.validation_fraction must be below 1.0, found 1"),
    ("generate: {top_p: 1.5}", "generate.top_p must be at most 1.0, found 1.5"),
    ("generate: {seed: x}", 'generate.seed must be an integer or null, found "x"'),
    ("generate: {seed: -1}", "generate.seed must be at least 0, found -1"),
    ("data: {reset_at_document: 1}", "data.reset_at_document must be true or false, found 1"),
    ("run: 2024", "run must be text, found 2024. Put it in quotes to make it text."),
    ("run: no", "run must be text, found false. Put it in quotes to make it text."),
    (
        "run: ../up",
        "run must be a folder name of at most 60 letters, digits, '_', '-' and '.', the first of "
        "them no '-' or '.', found \"../up\"",
    ),
    (
        "train: {device: cdua}",
        'train.device must be one of auto, cpu, cuda, found "cdua". Did you mean cuda?',
    ),
    (
        "train: {dtype: 16}",
        "train.dtype must be one of auto, fp32, bf16, found 16. Did you mean bf16?",
    ),
    ("train: 3", "train must be a mapping of names to values, found 3"),
    (
        "train: {stages: 3}",
        "train.stages must be a list, each a mapping of names to values, found 3",
    ),
    (
        "model: {options: [d_state]}",
        'model.options must be a mapping of names to values, found ["d_state"]',
    ),
    (
        "model: {d_state: 64}",
        "model.d_state is not a field. The fields here are size, block, d_model, n_layers, d_mlp, "
        "mlp, tie_embeddings, dropout, layers, layer_order, prediction_heads, convolution, copy, "
        "cross, options. model.options takes names of its own.",
    ),
    ("- 1", "expected NAME: VALUE lines, as `ys config show` prints them"),
    ("just text", "expected NAME: VALUE lines, as `ys config show` prints them"),
    ("run: !!python/name:os.system x", "run has the tag !!python/name:os.system, expected none"),
    ("run: !mine x", "run has the tag !mine, expected none"),
    ("train: {seed: !!int x}", "train.seed must be of type int, found 'x'"),
    ("? [a, b]\n: 1", "the file has a name that is not plain text"),
    ("model: {options: &a {self: *a}}", "model.options.self contains itself"),
    (
        "train: {seed: [}",
        "not valid YAML: expected the node content, but found '}'. "
        "See `ys config show` for a valid file.",
    ),
    ("run: a\n\trun: b", None),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_named_with_its_file_and_line(
    text: str, message: str | None, tmp_path: Path
) -> None:
    problems = problems_of(f"# a comment\n{text}", tmp_path)
    if message is None:
        assert problems[0].startswith("x.yaml:3: not valid YAML: ")
    else:
        assert f"x.yaml:2: {message}" in problems


def test_a_name_given_twice_is_a_problem(tmp_path: Path) -> None:
    text = "train:\n  seed: 1\n  max_steps: 2\n  seed: 3\n"
    assert problems_of(text, tmp_path) == [
        "x.yaml:4: train.seed is given twice, first in line 2",
    ]


def test_all_problems_of_all_sources_come_at_once(tmp_path: Path) -> None:
    text = "train:\n  sed: 1\n  stages:\n  - {seq_len: 0, steps: 1}\nrun: 1\nrun: 2\n"
    overrides = ["model.d_model=x", "seed", "train.dtype.a=1", "run={"]
    environment = {"YS_TRAN__SEED": "1", "YS_MODEL__DROPOUT": "2", "YS_TRAIN__DTYPE": "fp32"}
    problems = problems_of(text, tmp_path, overrides=overrides, environment=environment)
    assert problems == [
        "x.yaml:6: run is given twice, first in line 5",
        "YS_TRAN__SEED is not a setting. Did you mean YS_TRAIN__SEED?",
        "--set seed: expected NAME=VALUE, as in train.seed=7",
        "--set: train.dtype is a single value, train.dtype.a is not a field",
        "--set run:1: not valid YAML: expected the node content, but found '<stream end>'. "
        "Put it in quotes to make it text.",
        "x.yaml:5: run must be text, found 1. Put it in quotes to make it text.",
        '--set: model.d_model must be an integer, found "x"',
        "YS_MODEL__DROPOUT: model.dropout must be below 1.0, found 2",
        "x.yaml:2: train.sed is not a field. Did you mean seed?",
        "x.yaml:4: train.stages.0.seq_len must be at least 1, found 0",
        "x.yaml:4: train.stages.0.batch_size is missing, expected an integer",
    ]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"run: \xe9t\xe9\n")
    (tmp_path / "control").write_bytes(b"run: \x00\n")
    expected = {
        "missing": "missing does not exist. Give the path of a YAML file.",
        "latin": "latin is not UTF-8 text: byte 5 is 0xe9. Save it as UTF-8.",
        "control": "control: not valid YAML: unacceptable character #x0000: special characters are "
        "not allowed. See `ys config show` for a valid file.",
        "": f"{tmp_path} cannot be read: Is a directory. Give the path of a YAML file.",
    }
    for name, message in expected.items():
        with pytest.raises(UserError) as caught:
            load_config(tmp_path / name)
        assert str(caught.value).replace(f"{tmp_path}/", "") == message
        assert caught.value.exit_code == EXIT_USAGE


# --- the reader for dataclasses of others ---


@dataclasses.dataclass(frozen=True)
class Inner:
    n: int


@dataclasses.dataclass(frozen=True)
class Options:
    name: str
    size: int | str = setting(3, "size", minimum=1)
    scale: float | None = None
    inner: Inner | None = None
    pair: tuple[int, float] = (1, 2.0)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    level: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.level == 2 and self.scale is None:
            raise ValueError("level 2 needs scale")


def test_nested_types_are_read() -> None:
    mapping = {
        "name": "x",
        "size": "large",
        "scale": 1,
        "inner": {"n": 1},
        "pair": [3, 4],
        "weights": {"a": 1},
        "level": 2,
    }
    expected = Options("x", "large", 1.0, Inner(1), (3, 4.0), {"a": 1.0}, 2)
    assert parse_dataclass(Options, mapping, where="o") == expected


OPTION_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "o: name is missing, expected text"),
    ({"name": "x", "size": 0}, "o: size must be at least 1, found 0"),
    ({"name": "x", "size": 1.5}, "o: size must be an integer or text, found 1.5"),
    ({"name": "x", "inner": {"m": 1, "n": 1}}, "o: inner.m is not a field. The fields here are n."),
    ({"name": "x", "inner": 3}, "o: inner must be a mapping of names to values, found 3"),
    (
        {"name": "x", "pair": [1]},
        "o: pair must be a list of 2: an integer, a finite number, found [1]",
    ),
    ({"name": "x", "weights": {"a": "b"}}, 'o: weights.a must be a finite number, found "b"'),
    ({"name": "x", "weights": {1: 1.0}}, "o: weights has the name 1, expected text"),
    ({"name": "x", "level": True}, "o: level must be one of 1, 2, found true"),
    ({"name": "x", "level": 2}, "o: level 2 needs scale"),
    ({"name": "x", "scale": 10**400}, None),
]


@pytest.mark.parametrize(("mapping", "message"), OPTION_MISTAKES)
def test_mistakes_in_them_are_named(mapping: dict[str, Any], message: str | None) -> None:
    with pytest.raises(UserError) as caught:
        parse_dataclass(Options, mapping, where="o")
    if message is None:
        assert str(caught.value).startswith("o: scale must be a finite number or null, found 1000")
        assert len(str(caught.value)) < 120
    else:
        assert str(caught.value) == message


def test_they_are_read_from_files_with_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nlevel: 3\n")
    with pytest.raises(UserError, match=r"x\.yaml:2: level must be one of 1, 2, found 3"):
        load_dataclass(Options, path)
    assert load_dataclass(Options, write(tmp_path, "name: x")) == Options("x")


@pytest.mark.parametrize(
    ("interval", "total", "steps"),
    [
        (0, 100, 0),
        (1, 100, 1),
        (200, 100, 200),
        (0.25, 100, 25),
        (0.25, 101, 26),  # 26, 52, 78, 101: no fifth interval of one step
        (0.1, 30, 3),
        (1e-9, 100, 1),
    ],
)
def test_an_interval_below_1_is_a_share_of_all_steps(
    interval: float, total: int, steps: int
) -> None:
    assert in_steps(interval, total) == steps


BUDGETS = {
    "a file alone": ("minutes: 4", [], {}, (4.0, 2000)),
    "steps in a file": ("max_steps: 9", ["train.minutes=4"], {}, (4.0, 9)),
    "minutes in a file": ("minutes: 4", ["train.max_steps=9"], {}, (None, 9)),
    "the environment": ("minutes: 4", [], {"YS_TRAIN__MAX_STEPS": "9"}, (None, 9)),
    "typed over it": ("seed: 1", ["train.minutes=4"], {"YS_TRAIN__MAX_STEPS": "9"}, (4.0, 9)),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_the_later_of_minutes_and_steps_decides(case: str, tmp_path: Path) -> None:
    text, overrides, environment, found = BUDGETS[case]
    (tmp_path / "x.yaml").write_text(f"train:\n  {text}\n")
    loaded = load_config(tmp_path / "x.yaml", overrides=overrides, environment=environment)
    assert (loaded.config.train.minutes, loaded.config.train.max_steps) == found


def test_what_a_run_has_measured_is_no_conflict_in_its_own_file(tmp_path: Path) -> None:
    train = dataclasses.replace(Config().train, minutes=4.0, max_steps=77)
    (tmp_path / "x.yaml").write_text(to_yaml(dataclasses.replace(Config(), train=train)))
    assert load_config(tmp_path / "x.yaml").config.train == train
    with pytest.raises(UserError, match=r"train\.minutes is 5\.0, and train\.max_steps is 9"):
        load_config(tmp_path / "x.yaml", overrides=["train.minutes=5", "train.max_steps=9"])


def test_a_size_replaces_what_earlier_sources_set(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: {d_model: 7, dropout: 0.1, options: }\ntrain: {seed: 3}\n")
    loaded = load_config(file, overrides=["model.size=small", "train.beta1=0.8"])
    config, small = loaded.config, load_config(None, overrides=["model.size=small"]).config
    assert (config.model.d_model, config.model.options) == (128, small.model.options)
    assert (config.model.dropout, config.train.seed, config.train.beta1) == (0.1, 3, 0.8)
    origins = {name: loaded.origins[name] for name in ("model.d_model", "train.batch_size")}
    assert set(origins.values()) == {"size small"}
    assert loaded.origins["model.dropout"] == f"{file}:1"
    assert "# size small" in annotated_yaml(loaded)


def test_a_size_in_a_file_gives_way_to_no_value_beside_it(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("model: {size: small}\n")
    with pytest.raises(UserError, match=r"--set: model\.d_model is 9, and model\.size is small"):
        load_config(tmp_path / "x.yaml", overrides=["model.d_model=9"])
    larger = load_config(tmp_path / "x.yaml", overrides=["model.size=large"])
    assert larger.config.model.d_model == 256


def test_in_a_file_that_ys_wrote_the_values_stand_beside_the_size(tmp_path: Path) -> None:
    small = load_config(None, overrides=["model.size=small"]).config
    (tmp_path / "x.yaml").write_text(to_yaml(small))
    assert load_config(tmp_path / "x.yaml").config == small
    changed = load_config(tmp_path / "x.yaml", overrides=["train.learning_rate=0.001"]).config
    assert (changed.model.size, changed.train.learning_rate) == (None, 0.001)
    assert changed.model.d_model == small.model.d_model
    other = load_config(tmp_path / "x.yaml", overrides=["model.size=large"]).config
    assert other == load_config(None, overrides=["model.size=large"]).config


def test_a_size_that_is_not_chosen_yet_is_said_to_be_so(tmp_path: Path) -> None:
    asked = load_config(None, overrides=["model.size=auto", "train.minutes=3"])
    assert asked.origins["model.d_model"] == "size auto, not yet chosen"
    (tmp_path / "x.yaml").write_text(annotated_yaml(asked))
    assert load_config(tmp_path / "x.yaml").config == asked.config
    with pytest.raises(UserError, match=r"model\.d_model is 9, and model\.size is auto"):
        load_config(tmp_path / "x.yaml", overrides=["model.d_model=9"])


def test_an_option_that_is_on_by_default_stays_on_where_another_is_set(tmp_path: Path) -> None:
    by_default = {"three_tier": {"state_gate": True}}
    path = write(tmp_path, "model:\n  options:\n")
    assert load_config(path).config.model.options == by_default == Config().model.options
    resolved = load_config(path, overrides=["model.options.three_tier.d_state=8"])
    assert resolved.config.model.options == {"three_tier": {"d_state": 8, "state_gate": True}}
    assert resolved.origins["model.options.three_tier.state_gate"] == "default"
    off = load_config(None, overrides=["model.options.three_tier.state_gate=false"])
    assert off.config.model.options == {"three_tier": {"state_gate": False}}
    assert load_config(None, overrides=["model.layers=[min_gru]"]).config.model.options == {}


@pytest.mark.parametrize("options", [{}, {"three_tier": {"d_state": 8}}])
def test_a_saved_run_has_no_option_that_came_after_it(
    options: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    saved = replace(Config(), model=replace(Config().model, options=options))
    path = write(tmp_path, to_yaml(saved))
    assert load_config(path).config == saved
    assert load_config(path, overrides=["train.seed=7"]).config.model.options == options
