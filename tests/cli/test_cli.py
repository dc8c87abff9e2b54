"""The command as a user types it: help, flags, messages, exit codes, one run from end to end."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from support.forked import ForkServer

from ys_llm import __version__
from ys_llm.cli.main import COMMANDS, main, parse
from ys_llm.config.schema import GenerateConfig
from ys_llm.config.sources import load_config, to_mapping
from ys_llm.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NO_MODEL,
    EXIT_USAGE,
    UserError,
    command_line,
)
from ys_llm.runs.folder import locked

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "data.validation_fraction=0.2",
    "tokenizer.kind=bytes",
    "model.d_model=16",
    "model.n_layers=1",
    "model.d_mlp=16",
    "model.layers=[softmax_attention]",
    "train.max_steps=4",
    "train.warmup_steps=1",
    "train.seq_len=16",
    "train.batch_size=2",
    "train.device=cpu",
    "generate.max_tokens=8",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no setting of the user's in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("YS_"):
            monkeypatch.delenv(name)
    return tmp_path


def send(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Put a text on stdin, which is then no terminal."""
    content = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ys(*words: str, cwd: Path = ROOT, text: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ys_llm", *words],
        cwd=cwd,
        input=text,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- help ---


def test_help_loads_no_heavy_library() -> None:
    heavy = ("torch", "yaml", "numpy", "tokenizers", "dataclasses", "asyncio")
    code = (
        "import sys; from ys_llm.cli.main import main\n"
        "try: main(['--help'])\n"
        f"finally: print('LOADED', [name for name in {heavy} if name in sys.modules])\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: ys ")
    assert shown.stdout.splitlines()[-1] == "LOADED []"


def test_help_loads_few_modules() -> None:
    """A clock would test the machine; what `ys --help` costs is what it imports beyond these."""
    code = (
        "import argparse, gettext, importlib, locale, shlex, shutil, sys, traceback, typing\n"
        "before = len(sys.modules); from ys_llm.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: print(len(sys.modules) - before)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert int(shown.stdout.splitlines()[-1]) <= 12


def test_version() -> None:
    assert ys("--version").stdout == f"ys {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_listed_and_explains_itself_both_ways(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for words in (["help"], [command, "--help"], ["help", command]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        texts.append(capsys.readouterr().out)
    assert f"\n    {command} " in texts[0]
    assert texts[1] == texts[2]
    assert f"\n  ys {command}" in texts[1].partition("examples:")[2]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_in_a_help_text_is_made_of_words_that_exist(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"] if command else ["--help"])
    shown = capsys.readouterr().out
    examples = re.findall(r"^  (ys .+?)(?: {2,}.*)?$", shown.partition("examples:")[2], re.M)
    assert examples
    for example in examples:
        words = shlex.split(re.split(r" [<>] ", example)[0])[1:]
        if words[0] != "help":
            assert parse(words).command == words[0]


def test_without_words_the_overview_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == EXIT_USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("usage: ys ")


def test_every_sampling_field_has_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    for field in fields(GenerateConfig):
        assert f"--{field.name.replace('_', '-')} " in shown


# --- mistakes ---

WRONG_WORDS = [
    (["fly"], "invalid choice: 'fly'"),
    (["train", "clear"], "expected nothing, `clean` or `clean all`, found `clear`"),
    (["train", "clean", "everything"], "found `clean everything`"),
    (["train", "--learning-rate", "1"], "Did you mean --set train.learning_rate=VALUE?"),
    (["train", "--lr", "1"], "Did you mean --set train.learning_rate=VALUE?"),
    (["train", "--new-data", "x"], "--new-data is now --init-from RUN --data PATH"),
    (["train", "--from", "3"], "--from is now --resume-step STEP"),
    (["run", "--plain"], "--plain is now --raw"),
    (["run", "--weights", "int8"], "--weights is now --quantize"),
    (["eval", "x", "y", "--weights", "int8"], "--weights is now --quantize"),
    (["train", "--conf", "x"], "unrecognized arguments: --conf"),
    (["run", "--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
    (["run", "--prompt", "x", "--logprobs", "2"], "--logprobs needs --json"),
    (["run", "--json", "--logprobs", "-1"], "--logprobs must be at least 0, found -1"),
    (["run", "--prompts", "x", "--prompt", "y"], "--prompts prints JSON by itself"),
    (["run", "--cache-mb", "-1"], "--cache-mb must be at least 0, found -1"),
    (["run", "--cache", "x", "--cache-mb", "0"], "--cache-mb 0 keeps nothing"),
    (["run", "--json", "--cache", "x", "--logprobs", "2"], "--logprobs reads every token"),
    (["run", "--quantize", "int4"], "argument --quantize: invalid choice: 'int4'"),
    (["eval", "default"], "give a file or folder after the run, or --tasks that need none"),
    (["config"], "the following arguments are required: action"),
]


@pytest.mark.parametrize(
    ("words", "message"), WRONG_WORDS, ids=[" ".join(w) for w, _ in WRONG_WORDS]
)
def test_wrong_words_exit_with_2(
    words: Sequence[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_json_at_a_terminal_needs_a_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit) as caught:
        main(["run", "--json"])
    assert caught.value.code == EXIT_USAGE
    assert "--json needs --prompt, or a text on stdin" in capsys.readouterr().err


def test_each_configuration_problem_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.yaml").write_text("train:\n  sed: 1\n")
    words = ["--config", "x.yaml", "--set", "train.seed=x"]
    assert main(["config", "show", *words]) == EXIT_USAGE
    assert capsys.readouterr().err == (
        "ys: x.yaml:2: train.sed is not a field. Did you mean seed?\n"
        'ys: --set: train.seed must be an integer, found "x"\n'
    )


@pytest.mark.parametrize("words", [["run", "--prompt", "x"], ["eval", "default", "x"]])
def test_before_training_there_is_no_model(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == EXIT_NO_MODEL
    error = capsys.readouterr().err
    assert error.startswith("ys: ")
    assert "ys train" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("how", ["before the command", "after the command", "in the environment"])
def test_debug_shows_the_traceback(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["config", "show", "--config", "missing.yaml"]
    if how == "in the environment":
        monkeypatch.setenv("YS_DEBUG", "1")
    else:
        words.insert(0 if how == "before the command" else len(words), "--debug")
    assert main(words) == EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("Traceback ")
    assert error.endswith("ys: missing.yaml does not exist. Give the path of a YAML file.\n")


def test_a_reader_that_leaves_is_no_error_message(folder: Path) -> None:
    """`| true` closes the pipe before anything is written into it."""
    command = f'"{sys.executable}" -m ys_llm config show 2>errors | true; echo "${{PIPESTATUS[0]}}"'
    shown = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout == f"{EXIT_FAILED}\n"
    assert Path("errors").read_text() == ""


# --- ys config show ---


def show(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["config", "show", *words]) == 0
    return capsys.readouterr().out


def test_what_is_shown_is_a_configuration_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "train.seed=7", "--data", "{my: texts}", "--run", "2024"]
    Path("shown.yaml").write_text(show(capsys, *words))
    config = load_config(Path("shown.yaml")).config
    assert (config.train.seed, config.data.path, config.run) == (7, "{my: texts}", "2024")


def test_the_environment_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YS_TRAIN__SEED", "7")
    line = next(line for line in show(capsys).splitlines() if line.startswith("  seed: 7"))
    assert "# YS_TRAIN__SEED" in line


def test_a_run_that_exists_is_read_from_its_folder_unless_a_file_is_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text("run: mine\ntrain:\n  seed: 7\n")
    Path("other.yaml").write_text("run: mine\n")
    shown = show(capsys, "--run", "mine", "--set", "train.max_steps=5")
    assert "# runs/mine/config.yaml:3" in shown
    assert yaml.safe_load(shown)["train"]["max_steps"] == 5
    assert yaml.safe_load(show(capsys, "--config", "other.yaml"))["train"]["seed"] == 1337
    assert yaml.safe_load(show(capsys))["run"] == "default"


# --- ys gen-data ---


def test_a_corpus_is_made_where_torch_is_not_installed(folder: Path) -> None:
    (folder / "configs").symlink_to(ROOT / "configs")
    code = (
        "import sys; sys.modules['torch'] = None\n"  # `import torch` now raises ImportError
        "from ys_llm.cli.main import main\n"
        "sys.exit(main(['gen-data', '--count', '1', '--out', 'made']))"
    )
    for outcome in ("files written.", "Nothing to do."):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("made")
        assert "14 records" in result.stdout
        assert result.stdout.rstrip().endswith(outcome)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("recipe.yaml",), "expected curate, explain, preview or trace, found `recipe.yaml`"),
        (("recipe.yaml",), "--kind"),
        (("--kind", " , "), "--kind names no kind"),
        (("--count", "0"), "at least 1"),
        (("curate",), "curate PATH"),
    ],
)
def test_wrong_words_for_a_corpus_are_named(
    words: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["gen-data", *words])
    assert caught.value.code == EXIT_USAGE
    assert said in capsys.readouterr().err
    assert not list(folder.iterdir())


# --- from text to a model that writes, with the real thing ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a tiny trained run in it."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(30):
        (corpus / f"{number}.txt").write_text(f"The {number}th fox saw the {number}th hen. " * 9)
    settings = [word for pair in TINY for word in ("--set", pair)]
    result = ys("train", "--data", "corpus", "--run", "tiny", *settings, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_training_saves_the_settings_that_it_was_given(trained: Path) -> None:
    config = to_mapping(load_config(trained / "runs/tiny/config.yaml").config)
    assert config["run"] == "tiny"
    assert config["data"]["path"] == "corpus"
    assert config["train"]["max_steps"] == 4


def test_a_trained_run_answers_a_prompt_and_the_same_seed_the_same(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    answers = []
    for seed in ("1", "1", "2"):
        assert main(["run", "tiny", "--prompt", "The", "--seed", seed]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_prompts_in_a_file_are_answered_line_by_line_each_as_if_alone(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"The\n\nA hen\r\nThe fox")
    assert main(["run", "tiny", "--prompts", str(file), "--seed", "1"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["The", "A hen", "The fox"]
    for answer in answers:
        assert main(["run", "tiny", "--prompt", answer["prompt"], "--seed", "1"]) == 0
        assert capsys.readouterr().out == answer["text"] + "\n"
    file.write_bytes(b"caf\xe9")
    assert main(["run", "tiny", "--prompts", str(file)]) == EXIT_FAILED
    assert f"{file} is not UTF-8 text" in capsys.readouterr().err


def test_states_of_prompts_are_kept_in_a_file_for_the_same_model(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    kept, prompt = tmp_path / "kept.states", "The 3th fox saw the 3th hen. " * 9
    command = ["run", "tiny", "--seed", "1", "--cache", str(kept), "--prompt"]
    assert main([*command, prompt]) == 0
    first = capsys.readouterr()
    assert main([*command, prompt]) == 0
    second = capsys.readouterr()
    assert main([*command, prompt + "The"]) == 0
    longer = capsys.readouterr()
    assert (first.out, "cache" in first.err) == (second.out, False)
    assert "read 0 of 262 prompt tokens" in second.err
    assert "read 9 of 265 prompt tokens" in longer.err
    assert main(["run", "tiny", "--seed", "1", "--prompt", prompt + "The"]) == 0
    assert capsys.readouterr().out == longer.out
    assert main([*command, prompt, "--quantize", "int8"]) == EXIT_FAILED
    assert f"{kept} was written with another model" in capsys.readouterr().err
    assert main(["run", "tiny", "--prompt", "x", "--cache", "corpus/1.txt"]) == EXIT_FAILED
    assert "corpus/1.txt is not a whole file of saved prompts" in capsys.readouterr().err
    assert (trained / "corpus/1.txt").read_text().startswith("The 1th fox")


def test_an_interrupted_batch_keeps_the_states_of_what_it_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    kept, prompts = tmp_path / "kept.states", tmp_path / "prompts.txt"
    prompts.write_text("The fox\nThe hen\n")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ys_llm.inference.repl.Engine._answer", interrupt)
    assert main(["run", "tiny", "--prompts", str(prompts), "--cache", str(kept)]) == 130
    assert kept.exists()


def test_ctrl_c_does_not_hide_the_error_that_was_being_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        try:
            raise UserError("stopped by SIGINT at step 3, saved", exit_code=EXIT_INTERRUPTED)
        finally:
            try:  # as a report does that is written while the error is on its way
                Path("missing").read_text(encoding="utf-8")
            except OSError:
                raise KeyboardInterrupt  # noqa: B904 - so does a signal

    monkeypatch.setattr("ys_llm.cli.doctor.run", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["doctor"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "ys: stopped by SIGINT at step 3, saved\n"
    assert signal.getsignal(signal.SIGINT) == before


def test_what_rounded_weights_lose_is_told_by_eval(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    bits = {}
    for weights in ("fp32", "bf16", "int8"):
        assert main(["eval", "tiny", "corpus", "--json", "--quantize", weights]) == 0
        bits[weights] = json.loads(capsys.readouterr().out)[0]["bits_per_byte"]
        assert main(["run", "tiny", "--prompt", "The", "--quantize", weights]) == 0
        capsys.readouterr()
    assert len(set(bits.values())) == 3
    assert bits["int8"] == pytest.approx(bits["fp32"], rel=0.01)


@pytest.mark.parametrize(
    ("sent", "read"),
    [("two\nlines\n", "two\nlines"), ("dos\r\n", "dos"), ("a\rb\r", "a\rb\r"), ("\n\n", "\n")],
)
def test_a_text_on_stdin_is_read_exactly_but_for_its_last_line_break(
    sent: str,
    read: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    objects = []
    for words in ([], ["--prompt", read]):
        send(monkeypatch, sent)
        assert main(["run", "--json", "--seed", "1", "--max-tokens", "0", *words]) == 0
        objects.append(json.loads(capsys.readouterr().out))
    assert objects[0] == objects[1]


def test_a_text_that_is_not_utf8_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    send(monkeypatch, b"caf\xe9")
    assert main(["run"]) == EXIT_FAILED
    assert "ys: the text on stdin is not UTF-8. Save it as UTF-8." in capsys.readouterr().err
    assert main(["run", "--prompt", "caf\udce9"]) == EXIT_USAGE
    assert "ys: --prompt is not UTF-8 text" in capsys.readouterr().err


def test_sampling_flags_are_checked_like_the_configuration(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert main(["run", "--prompt", "x", "--top-p", "2", "--seed", "-1"]) == EXIT_USAGE
    assert capsys.readouterr().err == (
        "ys: --top-p: generate.top_p must be at most 1.0, found 2.0\n"
        "ys: --seed: generate.seed must be at least 0, found -1\n"
    )


def test_eval_prints_the_same_figures_as_a_table_and_as_json(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert main(["eval", "tiny", "corpus", "corpus/1.txt", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == ["corpus", "corpus/1.txt"]
    assert [row["documents"] for row in rows] == [30, 1]
    assert main(["eval", "tiny", "corpus", "corpus/1.txt"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "bits per byte" in header
    assert {len(line) for line in lines} == {len(header)}
    for row, line in zip(rows, lines, strict=True):
        assert f" {row['bits_per_byte']:.4f} " in line
    assert main(["eval", "tiny", "corpus", "--by-position"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["path", "first", "last", "loss", "tokens"]
    assert lines[0].split()[1] == "0"


def test_clean_asks_at_a_terminal_and_no_means_no(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    assert main(["train", "clean", "--run", "tiny"]) == EXIT_FAILED
    error = capsys.readouterr().err
    assert re.search(r"^removing runs/tiny/model.safetensors, [\d,.]+ [kM]B$", error, re.MULTILINE)
    assert re.search(r"^total [\d,.]+ [kM]B$", error, re.MULTILINE)
    assert "tokenizer.json" not in error
    assert error.endswith("Remove these and train from scratch? [y/N] nothing was removed\n")
    assert Path("runs/tiny/model.safetensors").exists()


def test_clean_without_a_terminal_removes_nothing_unless_told_to(
    trained: Path, forks: ForkServer
) -> None:
    run = trained / "runs/tiny"
    before = (run / "model.safetensors").stat().st_mtime_ns
    words = ["--run", "tiny", "--set", "train.max_steps=3"]
    refused = forks.run("train", "clean", "all", *words, folder=trained)
    assert refused.code == EXIT_USAGE
    advised = re.search(r"type: (ys train clean all .*--yes)$", refused.stderr, re.M)
    assert advised
    assert "removing" in refused.stderr
    assert (run / "model.safetensors").stat().st_mtime_ns == before
    result = forks.run(*shlex.split(advised.group(1))[1:], folder=trained)
    assert result.code == 0, result.stderr
    assert "removing runs/tiny/tokenizer.json, " in result.stderr
    assert (run / "model.safetensors").stat().st_mtime_ns > before
    assert load_config(run / "config.yaml").config.train.max_steps == 3


def test_a_dry_clean_lists_what_would_go_and_removes_and_trains_nothing(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    before = {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*")}
    assert main(["train", "clean", "all", "--run", "tiny", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "would remove runs/tiny/checkpoints/, " in captured.out
    assert {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*")} == before


def test_a_model_is_trained_on_with_other_text_in_a_run_of_its_own(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    Path("sea poems").mkdir()
    for number in range(30):
        Path(f"sea poems/{number}.txt").write_text(f"The sea, the sea, wave {number} of the sea.")
    before = (trained / "runs/tiny/model.safetensors").read_bytes()
    words = ["train", "--init-from", "tiny", "--data", "sea poems", "--set", "train.max_steps=2"]
    assert main(words) == 0
    assert "initialised  from the weights of runs/tiny, step " in capsys.readouterr().err
    config = load_config(Path("runs/tiny-sea-poems/config.yaml")).config
    assert (config.data.path, config.train.init_from) == ("sea poems", "tiny")
    assert (trained / "runs/tiny/model.safetensors").read_bytes() == before
    tokenizers = [
        Path(f"runs/{name}/tokenizer.json").read_bytes() for name in ("tiny", "tiny-sea-poems")
    ]
    assert tokenizers[0] == tokenizers[1]
    assert main([*words[:-1], "train.max_steps=3"]) == 0  # the same words again go on
    assert "resuming     from step 2 of 3" in capsys.readouterr().err
    assert main(["train", "--run", "tiny-sea-poems"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume-step", "-1"], "--resume-step must be at least 0, found -1"),
        (["clean", "--resume-step", "0", "--yes"], "removes the checkpoints"),
        (
            ["--init-from", "x", "--data", "y", "--config", "z"],
            "uses the configuration of that run",
        ),
        (["--init-from", "x"], "--init-from needs --data PATH"),
        (["--init-from", "x", "--data", "y", "--size", "small"], "keeps the size of that run"),
        (
            ["--init-from", "x", "--data", "y", "--size", "auto", "--minutes", "3"],
            "keeps the size of that run",
        ),
    ],
)
def test_flags_of_train_that_cannot_be_meant_together(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == EXIT_USAGE
    assert said in capsys.readouterr().err


# --- platforms and locales ---


def test_windows_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["config", "show"]) == EXIT_FAILED
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "ys: ys runs on Linux and macOS (Windows: through WSL)\n"


FOREIGN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def ys_in_the_c_locale(*words: str, cwd: Path, text: str = "") -> tuple[bytes, bytes, int]:
    """The command where neither the locale nor Python's settings say UTF-8."""
    done = subprocess.run(
        [sys.executable, "-m", "ys_llm", *words],
        cwd=cwd,
        input=text.encode(),
        env=os.environ | FOREIGN | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    return done.stdout, done.stderr, done.returncode


def test_arguments_paths_and_stdin_are_utf8_whatever_the_locale(trained: Path) -> None:
    words = ("run", "tiny", "--json", "--max-tokens", "0")
    given, error, code = ys_in_the_c_locale(*words, "--prompt", "Привет", cwd=trained)
    assert code == 0, error
    sent, error, code = ys_in_the_c_locale(*words, cwd=trained, text="Привет")
    assert code == 0, error
    assert json.loads(sent)["prompt"] == json.loads(given)["prompt"] == "Привет"
    (trained / "тексты").mkdir()
    (trained / "тексты/один.yaml").write_text("data: {path: Жил-был кот}", encoding="utf-8")
    words = ("config", "show", "--config", "тексты/один.yaml")
    shown, error, code = ys_in_the_c_locale(*words, cwd=trained)
    assert code == 0, error
    assert "path: Жил-был кот" in shown.decode() and "тексты/один.yaml" in shown.decode()


def test_the_environment_reaches_generation(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    lengths = []
    for variables, words in (
        ({}, []),
        ({"YS_GENERATE__MAX_TOKENS": "3"}, []),
        ({"YS_GENERATE__MAX_TOKENS": "3"}, ["--max-tokens", "2"]),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert main(["run", "tiny", "--prompt", "The", "--json", "--seed", "1", *words]) == 0
        lengths.append(len(capsys.readouterr().out))
    assert lengths[0] > lengths[1] > lengths[2]


def test_a_clean_during_a_training_is_refused_before_anything_is_listed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    with locked(Path("runs/tiny")):
        assert main(["train", "clean", "--run", "tiny", "--yes"]) == EXIT_FAILED
    error = capsys.readouterr().err
    assert "removing" not in error
    assert "runs/tiny is being trained by process" in error


def test_a_missing_text_is_advised_with_the_run_and_the_default_one_can_be_generated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--run", "mine", "--data", "gone"]) == EXIT_FAILED
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("Type: ys train --run mine --data PATH")
    assert main(["train"]) == EXIT_FAILED
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "Type: ys train --run default --data PATH, or generate text first: ys gen-data"
    )


ADVISED = {
    "train clean --run mine --data a --set train.seed=3": "train clean",
    "train clean all --run mine --config quickstart": "train clean all",
    "train clean --run mine --minutes 5 --size auto": "train clean",
}


@pytest.mark.parametrize("typed", ADVISED)
def test_what_is_advised_is_about_the_same_run(
    typed: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(Path("runs/mine")):
        Path("runs/mine/metrics.jsonl").write_text("{}")
    assert main(shlex.split(typed)) == EXIT_USAGE
    advice = re.search(r"type: ys (.*)$", capsys.readouterr().err, re.M)
    assert advice
    advised, first = parse(shlex.split(advice.group(1))), parse(shlex.split(typed))
    assert advised.yes
    for name in ("action", "run", "config", "data", "set", "minutes", "size"):
        assert getattr(advised, name) == getattr(first, name)


def no_checkpoints() -> None:
    shutil.rmtree("runs/tiny/checkpoints")


def damaged_weights() -> None:
    Path("runs/tiny/model.safetensors").write_bytes(b"half")


def damaged_checkpoints() -> None:
    for path in Path("runs/tiny/checkpoints").glob("step-*"):
        (path / "SHA256SUMS").unlink()


def of_an_earlier_version() -> None:
    path = Path("runs/tiny/config.yaml")
    path.write_text(path.read_text().replace("batching:", "layout:"))


def no_text() -> None:
    shutil.rmtree("corpus")


def no_model() -> None:
    Path("runs/tiny/model.safetensors").unlink()


FAILURES: list[tuple[Callable[[], object], str]] = [
    (Path, "train clean --run tiny"),
    (Path, "train --run tiny --set model.d_model=32"),
    (no_checkpoints, "train --run tiny"),
    (no_checkpoints, "train --run tiny --dry-run"),
    (damaged_checkpoints, "train --run tiny --set train.max_steps=8"),
    (damaged_weights, "run tiny --prompt x"),
    (damaged_weights, "eval tiny corpus"),
    (of_an_earlier_version, "run tiny --prompt x"),
    (of_an_earlier_version, "train --run tiny"),
    (no_text, "train --run tiny"),
    (no_model, "run tiny --prompt x"),
]
REPEATED = ("config", "set", "init_from", "data", "run")
TYPED = [  # each is refused, and the advised command gives the same configuration
    "train --run new --config quickstart --data gone --set train.seed=3",
    "train --init-from tiny --data gone --set train.seed=3",
    "train --init-from tiny --run new --data gone",
    "train --run tiny --set model.d_model=32 --set train.seed=3",
    "train --run tiny --set model.d_model=32 --dry-run",
]


@pytest.mark.parametrize(("harm", "typed"), FAILURES)
def test_every_advised_command_is_accepted_and_is_about_the_same_run(
    harm: Callable[[], object],
    typed: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    harm()
    send(monkeypatch, "")
    assert main(shlex.split(typed)) != 0
    said = capsys.readouterr().err.splitlines()[-1]
    advised = re.findall(r"\bys ((?:train|run|eval|convert|gen-data)\b[^,.`]*)", said)
    assert advised, said
    for command in advised:
        accepted = parse(shlex.split(command))
        named = [getattr(accepted, name, None) for name in ("run", "name", "init_from")]
        assert {Path(name).name for name in named if name} == {"tiny"}, command
        assert getattr(accepted, "data", None) in (None, "corpus", "PATH"), command


@pytest.mark.parametrize("typed", TYPED)
def test_advice_repeats_every_flag_that_the_configuration_came_from(
    typed: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert main(shlex.split(typed)) != 0
    (advice,) = re.findall(r"\bys (train\b.*)$", capsys.readouterr().err.splitlines()[-1])
    advised, first = parse(shlex.split(advice)), parse(shlex.split(typed))
    for name in REPEATED:
        expected = "PATH" if getattr(first, name) == "gone" else getattr(first, name)
        assert getattr(advised, name) == expected, name


def test_a_command_to_type_is_quoted_for_the_shell() -> None:
    command = command_line("train", "clean", run="a b", data="it's", set=["x=1", "y=[1]"], yes=True)
    assert shlex.split(command) == [
        *("ys", "train", "clean", "--run", "a b", "--data", "it's"),
        *("--set", "x=1", "--set", "y=[1]", "--yes"),
    ]
    assert command_line("train", run=None, data="", dry_run=False) == "ys train"


def test_a_deleted_current_folder_is_one_clear_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = f'"{sys.executable}" -m ys_llm config show'
    done = subprocess.run(
        ["bash", "-c", f"rmdir '{gone}'; {words}"],
        cwd=gone,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == EXIT_FAILED
    assert done.stderr == "ys: the current folder no longer exists; change to one that does\n"
