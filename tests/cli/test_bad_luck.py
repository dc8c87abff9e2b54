"""Damaged models, missing rights, closed streams, odd clocks: one clear line, and nothing lost."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from support.bad_cases import (
    TRAIN,
    Case,
    check,
    everything,
    exit_code,
    file,
    put,
    table,
    without_rights,
)
from support.training_runs import ROOT, SMALL, SMALL_STATE, rows_of

from ys_llm.cli.main import main
from ys_llm.errors import EXIT_FAILED, EXIT_NO_MODEL, EXIT_USAGE
from ys_llm.runs.model_files import read_tensors

FOX = "The fox saw the hen.\n" * 40
ASK = ("run", "good", "--prompt", "The", "--max-tokens", "2")
EVAL = ("eval", "good", "texts")
KIND = "{description: words, backend: program, program: spelling, rules: [], count: 9}"


def train(run: str, *changes: str) -> None:
    words = [word for pair in (*SMALL[1:], *changes) for word in ("--set", pair)]
    assert main(["train", "--data", "texts", "--run", run, *words]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, the run `good`, and `other`, which nothing of `good` fits."""
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    threads = torch.get_num_threads()
    os.chdir(folder)
    try:
        for number in range(8):
            put(f"texts/{number}.txt", f"Text {number}. {FOX}")
        train("good", SMALL_STATE)
        train("other", "model.options.three_tier.d_state=24", "tokenizer.kind=bpe")
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return folder


@pytest.fixture(autouse=True)
def folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_as_they_were: None
) -> Path:
    """A copy of it as the current folder, and no setting of the user's in the environment."""
    here = tmp_path / "here"
    shutil.copytree(trained, here, symlinks=True)
    monkeypatch.chdir(here)
    for name in list(os.environ):
        if name.upper().startswith("YS_"):
            monkeypatch.delenv(name)
    return here


# --- models ---


def cut(name: str) -> Callable[[], None]:
    """The first half of a file, as a full disk leaves it."""

    def make() -> None:
        path = Path("runs/good", name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return make


def foreign(name: str, content: str | bytes) -> Callable[[], None]:
    return file(f"runs/good/{name}", content)


def swapped(name: str) -> Callable[[], None]:
    """The file of the other run."""
    return lambda: put(f"runs/good/{name}", Path("runs/other", name).read_bytes())


def gone(name: str) -> Callable[[], None]:
    return lambda: Path("runs/good", name).unlink()


def edited(**values: object) -> Callable[[], None]:
    """config.json with other values; None takes one out."""

    def make() -> None:
        path = Path("runs/good/config.json")
        described = json.loads(path.read_text()) | values
        kept = {name: value for name, value in described.items() if value is not None}
        path.write_text(json.dumps(kept))

    return make


def weights_that_are_no_numbers() -> None:
    import safetensors.torch

    path = Path("runs/good/model.safetensors")
    tensors = {name: tensor * float("nan") for name, tensor in read_tensors(path).items()}
    path.write_bytes(safetensors.torch.save(tensors))


def newer_settings() -> None:
    path = Path("runs/good/config.yaml")
    path.write_text(path.read_text() + "memory_of_elephants: true\n")


def damaged(note: str, make: Callable[[], None], *says: str, code: int = EXIT_FAILED) -> Case:
    """A run whose files are not what was saved."""
    return Case(note, ASK, says, make, code, may_write="")


MODELS = (
    damaged("weights cut off", cut("model.safetensors"), "runs/good/model.safetensors", "ys train"),
    damaged(
        "weights empty", foreign("model.safetensors", ""), "good/model.safetensors", "ys train"
    ),
    damaged(
        "weights that are a picture",
        foreign("model.safetensors", b"\x89PNG\r\n\x1a\n" + bytes(500)),
        *("runs/good/model.safetensors cannot be read", "ys train"),
    ),
    damaged(
        "weights of another run",
        swapped("model.safetensors"),
        *("runs/good/model.safetensors does not fit its config.yaml", "ys train"),
    ),
    damaged("weights that are NaN", weights_that_are_no_numbers, "NaN", "ys train clean"),
    damaged(
        "no weights",
        gone("model.safetensors"),
        *("the run good has no model yet", "ys train --run good"),
        code=EXIT_NO_MODEL,
    ),
    damaged(
        "tokenizer of another run",
        swapped("tokenizer.json"),
        *("runs/good/tokenizer.json is not the tokenizer", "ys train clean all"),
    ),
    damaged("tokenizer cut off", cut("tokenizer.json"), "runs/good/tokenizer.json is not a", "ys"),
    damaged(
        "tokenizer of somebody else",
        foreign("tokenizer.json", '{"model": {"type": "WordLevel"}}'),
        *("runs/good/tokenizer.json is not a tokenizer of ys", "ys train clean all"),
    ),
    damaged("no tokenizer", gone("tokenizer.json"), "tokenizer.json cannot be read", "ys train"),
    damaged("description cut off", cut("config.json"), "config.json cannot be read", "ys train"),
    damaged("description that is a list", foreign("config.json", "[]"), "found a list", "ys train"),
    damaged("description too deep", foreign("config.json", "[" * 10**6), "config.json", "ys train"),
    damaged("description without a step", edited(step=None), "step is missing", "ys train"),
    damaged("a step that is a word", edited(step="many"), "config.json", "step", "ys train"),
    damaged(
        "settings of another run",
        swapped("config.yaml"),
        *("does not fit its config.yaml", "Put back the config.yaml"),
    ),
    damaged(
        "settings cut in a word",
        foreign("config.yaml", "run: good\ntra"),
        "runs/good/config.yaml:2:",
        code=EXIT_USAGE,
    ),
    damaged(
        "settings of a newer ys",
        newer_settings,
        *("runs/good/config.yaml:", "memory_of_elephants is not a field"),
        code=EXIT_USAGE,
    ),
    damaged(
        "no settings", gone("config.yaml"), "runs/good/config.yaml does not exist", code=EXIT_USAGE
    ),
)


@table(*MODELS)
def test_a_damaged_model_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    check(case, capsys)


# --- words ---

WORDS = (
    Case(
        "a run that is none", ("run", "god", "--prompt", "x"), ("'god'", "good"), code=EXIT_NO_MODEL
    ),
    Case("a run of no name", ("run", "", "--prompt", "x"), ("''", "good"), code=EXIT_NO_MODEL),
    Case(
        "a run of 300 letters",
        ("run", "x" * 300, "--prompt", "x"),
        ("no trained model", "good"),
        code=EXIT_NO_MODEL,
    ),
    Case("eval of a missing path", (*EVAL, "gone"), ("gone does not exist", "ys eval good PATH")),
    Case("eval of a picture", (*EVAL, "a.png"), ("a.png is none of",), file("a.png")),
    Case(
        "eval of an empty folder",
        ("eval", "good", "no"),
        ("no holds no text", "ys eval"),
        lambda: Path("no").mkdir(),
    ),
    Case(
        "eval of bytes", ("eval", "good", "a.txt"), ("a.txt:1: byte 0xff",), file("a.txt", b"\xff")
    ),
    Case(
        "a table of a short text",
        ("eval", "good", "a.txt", "--by-position"),
        ("has 4 tokens", "needs 16", "Give a longer text"),
        file("a.txt", "abc"),
    ),
    Case(
        "half a character",
        (*ASK, "--prompt", "caf\udce9"),
        ("--prompt is not UTF-8",),
        code=EXIT_USAGE,
    ),
    Case("a hot temperature", (*ASK, "--temperature", "inf"), ("finite number",), code=EXIT_USAGE),
    Case(
        "a seed of 30 digits",
        (*ASK, "--seed", "9" * 30),
        ("seed must be at most",),
        code=EXIT_USAGE,
    ),
    Case(
        "an unknown kind",
        ("gen-data", "--kind", "speling"),
        ("there is no kind speling", "spelling"),
        file("gen/kinds/small.yaml", KIND),
        EXIT_USAGE,
    ),
    Case(
        "a kind with a mistake",
        ("gen-data", "--kind", "small"),
        ("small.yaml:1: progam is not a field. Did you mean program?",),
        file("gen/kinds/small.yaml", KIND.replace("program:", "progam:")),
        EXIT_USAGE,
    ),
    Case(
        "a kind without end",
        ("gen-data", "--kind", "small"),
        ("small.yaml:1: count must be at most",),
        file("gen/kinds/small.yaml", KIND.replace("9", str(10**12))),
        EXIT_USAGE,
    ),
    Case(
        "a corpus into a file",
        ("gen-data", "--out", "texts/0.txt/made"),
        ("texts/0.txt/made", "cannot be written: Not a directory", "choose a folder"),
        file("gen/kinds/small.yaml", KIND),
    ),
)


@table(*WORDS)
def test_what_cannot_be_done_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    check(case, capsys)


@pytest.mark.parametrize(
    "prompt", ["", " ", "<end>", "<start>a<end>", "x" * 30_000, "\x00\x1b[0m", "日本語 \U0001f98a"]
)
def test_an_odd_prompt_is_answered(prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*ASK, "--prompt", prompt) == 0
    assert "ys: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("--temperature", "1e-320"),
        ("--temperature", "1e300"),
        ("--repetition-penalty", "1e-300"),
        ("--repetition-penalty", "1e300"),
        ("--top-p", "1e-300"),
        ("--min-p", "1"),
        ("--top-k", str(10**12)),
    ],
)
def test_odd_sampling_still_samples(
    flags: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*ASK, "--seed", "1", *flags) == 0, capsys.readouterr().err


# --- folders and rights ---


def a_run_that_is_a_file() -> None:
    put("runs/new", "not a folder")


def no_folder_for_runs() -> None:
    shutil.rmtree("runs")
    put("runs", "not a folder")


PLACES = (
    Case("runs is a file", TRAIN, ("runs", "director", "ys"), no_folder_for_runs),
    Case(
        "the run is a file",
        TRAIN,
        ("runs/new is a file", "--run"),
        a_run_that_is_a_file,
        may_write="",
    ),
    Case(
        "somebody else's folder",
        TRAIN,
        ("runs/new", "--run"),
        file("runs/new/thesis.txt", "years of work"),
        may_write="",
    ),
)


@table(*PLACES)
def test_a_place_where_no_run_can_be_is_named(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, capsys)


@pytest.mark.parametrize(
    ("words", "closed", "code"),
    [
        (("train", "--run", "good", "--set", "train.max_steps=8"), "runs/good", EXIT_FAILED),
        (TRAIN, "runs", EXIT_FAILED),
        (ASK, "runs/good/model.safetensors", EXIT_FAILED),
        (ASK, "runs/good/config.yaml", EXIT_USAGE),
        (("gen-data", "--out", "runs/good/made"), "runs/good", EXIT_FAILED),
        (("config", "show", "--config", "texts/0.txt"), "texts/0.txt", EXIT_USAGE),
    ],
    ids=["train", "begin", "weights", "settings", "gen-data", "config"],
)
def test_missing_rights_are_named(
    words: Sequence[str], closed: str, code: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("gen/kinds/small.yaml", KIND)
    for name in (
        "sqlite3",
        "ys_llm.gendata.generation.generate",
    ):  # Python's own files may be out of reach
        importlib.import_module(name)
    before = everything()
    path = Path(closed)
    path.chmod(0o555 if path.is_dir() else 0)
    for name in (path, *path.parents):
        if os.geteuid() == 0 and name != path:
            name.chmod(0o755)
    with without_rights():
        assert exit_code(*words) == code
    path.chmod(0o755)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("ys: ")] == said[-1:]
    assert closed in said[-1]
    assert "Permission denied" in said[-1]
    assert everything() == before


def test_a_missing_cuda_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    says = ("train.device", "cuda", "--set train.device=cpu")
    words = (*TRAIN, "--set", "train.device=cuda")
    assert exit_code(*words) in (EXIT_FAILED, EXIT_USAGE)
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(part in error for part in says)


# --- clocks ---


def test_a_clock_that_stands_or_goes_backwards_hurts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time of day may be set back; of the other clocks two looks may see the same."""
    looks = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: 1e9 - 60.0 * next(looks))
        for name in ("perf_counter", "monotonic"):
            patched.setattr(time, name, lambda: 1000.0)
        assert exit_code(*TRAIN) == 0, capsys.readouterr().err
        assert exit_code(*ASK) == 0, capsys.readouterr().err
    rows = rows_of(Path("runs/new"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["step_seconds"] >= 0 for row in rows)


# --- streams ---


def shell(command: str, folder: Path) -> tuple[str, int]:
    """What a command line wrote to stderr, and its exit code (of the first in a pipe)."""
    script = command.replace("ys ", f'"{sys.executable}" -m ys_llm ', 1)
    done = subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )
    return done.stderr, done.returncode


STREAMS = {
    "ys help | true": (0, ""),
    "ys config show | true": (EXIT_FAILED, ""),
    "ys eval good texts | true": (EXIT_FAILED, ""),
    "ys run good --prompt The --max-tokens 2 | true": (EXIT_FAILED, ""),
    "ys config show > /dev/full": (EXIT_FAILED, "ys: "),
    "ys config show >&-": (0, ""),
    "ys config show --config gone.yaml 2>&-": (EXIT_USAGE, ""),
    "ys run good --prompt The --max-tokens 2 2>&-": (0, ""),
    "ys run good <&-": (EXIT_USAGE, "ys: "),
    "ys train clean --run good <&-": (EXIT_USAGE, "ys: "),
    "ys train clean --run good": (EXIT_USAGE, "ys: "),
}


@pytest.mark.parametrize("command", STREAMS)
def test_a_stream_that_is_closed_or_full_brings_no_traceback(command: str, folder: Path) -> None:
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    before = everything()
    code, begins = STREAMS[command]
    error, found = shell(command, folder)
    said = [line for line in error.splitlines() if line.startswith("ys: ")]
    assert found == code, error
    assert len(said) == (1 if begins else 0), error
    assert "Traceback" not in error
    assert "Exception ignored" not in error
    assert everything() == before
