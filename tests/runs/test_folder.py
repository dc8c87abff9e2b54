"""Whose a run's folder is, what is in it, and that cleaning takes that and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ys_llm.errors import EXIT_NO_MODEL, UserError
from ys_llm.runs.folder import (
    CleanScope,
    Removal,
    archive,
    find_run,
    list_removals,
    locked,
    remove,
    remove_temp_files,
)
from ys_llm.system.lock import RUN_LOCK, is_run

FILES = {
    "README.md": b"card",
    "cache/abc/tokens.bin": b"x",
    "checkpoints/step-00000005/progress.json": b"{}",
    "config.json": b'{"model_type": "ys"}',
    "config.yaml": b"run: mine",
    "generation_config.json": b"{}",
    "metrics.jsonl": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    fill(folder)
    with locked(folder):
        pass
    return folder


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names(paths: list[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def removed_names(run: Path, scope: CleanScope) -> list[str]:
    return names([item.path for item in plan(run, scope)])


def plan(run: Path, scope: CleanScope) -> list[Removal]:
    return list_removals(run, scope, corpus=run.parent.parent / "corpus")


def test_clean_takes_the_model_and_leaves_tokenizer_cache_and_configuration(run: Path) -> None:
    assert removed_names(run, "model") == [
        "README.md",
        "checkpoints",
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    remove(plan(run, "model"))
    assert names(list(run.iterdir())) == [RUN_LOCK, "cache", "config.yaml", "tokenizer.json"]


def test_clean_all_takes_everything_that_a_run_makes_and_nothing_else(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "plots").mkdir()
    for name in ("superseded", "post-mortem"):
        (run / name).mkdir()
    (run / "rollbacks.json").write_text("{}")
    remove(plan(run, "all"))
    assert names(list(run.iterdir())) == [RUN_LOCK, "notes.txt", "plots"]


def test_the_plan_tells_how_much_goes_and_counts_no_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b"x" * 1000)
    os.symlink(tmp_path / "huge", run / "cache" / "abc" / "link")
    sizes = {item.path.name: item.bytes for item in plan(run, "all")}
    assert sizes["model.safetensors"] == len(FILES["model.safetensors"])
    assert sizes["cache"] == 1 + len(str(tmp_path / "huge"))


def test_there_is_nothing_to_clean_where_nothing_was_made(tmp_path: Path) -> None:
    assert plan(tmp_path / "runs" / "new", "all") == []


def test_cleaning_removes_a_link_and_never_what_it_points_to(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / "checkpoints", elsewhere)
    os.symlink(elsewhere, run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    os.symlink(tmp_path / "nothing", run / "metrics.jsonl")
    assert {"checkpoints", "metrics.jsonl"} <= set(removed_names(run, "all"))
    remove(plan(run, "all"))
    assert names(list(run.iterdir())) == [RUN_LOCK]
    assert names(list(elsewhere.iterdir())) == ["step-00000005"]


def test_a_link_inside_a_folder_that_goes_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "novel.txt").write_text("mine")
    os.symlink(tmp_path / "texts", run / "cache" / "texts")
    remove(plan(run, "all"))
    assert (tmp_path / "texts" / "novel.txt").read_text() == "mine"


def test_a_run_that_is_a_link_is_neither_cleaned_nor_trained(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "runs" / "alias"
    os.symlink(run, link)
    with pytest.raises(UserError, match=re.escape(f"{link} is a link")):
        plan(link, "all")
    with pytest.raises(UserError, match=re.escape(f"{link} is a link")), locked(link):
        pass


@pytest.mark.parametrize("inside", ["cache", "cache/texts", "checkpoints"])
def test_a_corpus_inside_what_would_go_keeps_all_of_it(run: Path, inside: str) -> None:
    (run / inside).mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"data.path .* is in .*, which `clean` would remove"):
        list_removals(run, "all", corpus=run / inside)
    assert {str(path.relative_to(run)) for path in run.rglob("*")} > set(FILES)


def test_a_corpus_beside_or_above_the_run_is_no_obstacle(run: Path) -> None:
    for corpus in (run, run.parent, run / "texts"):
        assert len(list_removals(run, "all", corpus=corpus)) == len(
            {name.split("/")[0] for name in FILES}
        )


def test_a_folder_that_no_run_made_is_neither_cleaned_nor_trained_into(tmp_path: Path) -> None:
    project = tmp_path / "runs" / "project"
    fill(project)
    (project / "config.json").write_text('{"model_type": "llama"}')
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"project is not a run of ys: it has README.md"):
        plan(project, "all")
    with pytest.raises(UserError, match=r"Choose another --run"), locked(project):
        pass
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": 3}', "\x00", "[" * 100_000])
def test_what_is_no_description_makes_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert not is_run(tmp_path)


def test_a_run_copied_without_its_hidden_files_is_one_still(run: Path) -> None:
    (run / RUN_LOCK).unlink()
    assert is_run(run)


def test_an_empty_folder_and_one_that_is_missing_become_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/in/here"):
        with locked(tmp_path / name):
            assert is_run(tmp_path / name)


def test_a_file_in_the_place_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with (
        pytest.raises(UserError, match="mine is a file, expected a folder"),
        locked(tmp_path / "mine"),
    ):
        pass


HOLD = """
import sys, pathlib
from ys_llm.runs.folder import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_owner_is_refused_and_told_of_the_first_until_it_is_killed(run: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        refusal = pytest.raises(UserError, match=f"is being trained by process {other.pid} on ")
        with refusal, locked(run):
            pass
        other.kill()
        other.wait()
    with locked(run):
        assert json.loads((run / RUN_LOCK).read_text())["pid"] == os.getpid()


def test_half_written_files_of_a_killed_process_are_swept_away(run: Path) -> None:
    left = (".config.json.ab12.tmp", "checkpoints/.step-00000006.tmp", "cache/abc/.index.bin.1.tmp")
    for name in left:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"half")
    (run / "checkpoints/.step-00000007.tmp").mkdir()
    (run / "checkpoints/.step-00000007.tmp/model.safetensors").write_bytes(b"half")
    remove_temp_files(run)
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
    assert {str(path.relative_to(run)) for path in run.rglob("*")} > set(FILES)


def test_what_is_left_behind_never_replaces_what_was(run: Path) -> None:
    for content in ("first", "second"):
        (run / "thing").write_text(content)
        archive(run, run / "thing")
    texts = [path.read_text() for path in sorted((run / "superseded").iterdir())]
    assert texts == ["first", "second"]


def test_a_run_is_found_by_name_by_path_or_as_the_latest(run: Path) -> None:
    runs = run.parent
    older = runs / "older"
    shutil.copytree(run, older)
    os.utime(older / "model.safetensors", (1, 1))
    assert find_run(runs, "mine") == run
    assert find_run(runs, "older") == older
    assert find_run(runs / "elsewhere", str(older)) == older
    assert find_run(runs, None) == run
    os.utime(run / "model.safetensors", (0, 0))
    assert find_run(runs, None) == older


def test_without_a_model_the_exit_code_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ys train") as caught:
        find_run(tmp_path / "empty", None)
    assert caught.value.exit_code == EXIT_NO_MODEL
    with pytest.raises(UserError, match=r"no trained model 'yours'.*hoose one of: mine") as caught:
        find_run(run.parent, "yours")
    assert caught.value.exit_code == EXIT_NO_MODEL
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="ys train --run mine") as caught:
        find_run(run.parent, "mine")
    assert caught.value.exit_code == EXIT_NO_MODEL
