"""What is installed from a wheel works in an empty folder, without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest
from support.training_runs import ROOT

SOURCES = ("ys_llm", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
TINY = (
    "tokenizer.kind=bytes",
    "model.d_model=16",
    "model.n_layers=1",
    "model.d_mlp=16",
    "model.options.three_tier.d_state=16",
    "train.max_steps=2",
    "train.warmup_steps=1",
    "train.seq_len=16",
    "train.batch_size=2",
    "train.eval_tokens=100",
    "train.sample_interval=0",
    "generate.max_tokens=4",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of the sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    pip(sys.executable, "wheel", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with that wheel, which borrows the libraries of this one but not ys_llm."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Paths alone: the .pth files in them, one of which may lead to the repository, are not read.
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip(str(folder / "bin/python"), "install", "--no-index", "--ignore-installed", str(wheel))
    return folder


def pip(python: str, command: str, *words: str) -> None:
    subprocess.run(
        [python, "-m", "pip", command, "--quiet", "--no-deps", *words],
        env=outside(),
        check=True,
        timeout=120,
    )


def outside() -> dict[str, str]:
    """The environment of a shell that knows nothing of the repository."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("YS_") and name != "PYTHONPATH"
    }
    return others | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def settings(*changes: str) -> list[str]:
    return [word for change in (*TINY, *changes) for word in ("--set", change)]


def test_the_wheel_holds_the_package_its_sources_and_the_shipped_files(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    kinds = (".py", ".cpp", ".h", ".html", ".js", ".css", ".svg")
    package = (path for path in (ROOT / "ys_llm").rglob("*") if path.suffix in kinds)
    shipped = (path for path in (ROOT / "configs").rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "ys_llm/serving/web").iterdir()
    }
    expected |= {f"ys_llm/{path.relative_to(ROOT).as_posix()}" for path in shipped}
    missing = expected - held
    assert not missing
    assert {name.split("/")[0].partition("-")[0] for name in held} == {"ys_llm"}


def test_every_command_works_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    def started(program: str, *words: str) -> str:
        done = subprocess.run(
            [environment / program, *words],
            cwd=tmp_path,
            env=outside() | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"{program} {words}\n{done.stdout}{done.stderr}"
        return done.stdout

    ys = partial(started, "bin/ys")
    assert "spelling" in ys("gen-data", "--list")
    ys("gen-data", "--count", "2")
    assert (tmp_path / "training_data" / "MANIFEST.jsonl").exists()
    assert "d_model: 192" in ys("config", "show", "--config", "quickstart")
    ys("train", "--config", "default", *settings("data.validation_fraction=0.2"))
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number}.txt").write_text(f"The {number}th fox saw a hen. " * 9)
    commands = [
        ["train", "--data", "texts", "--run", "mine", *settings("data.validation_fraction=0.2")],
        ["run", "mine", "--prompt", "The", "--max-tokens", "4", "--temperature", "0"],
        ["eval", "mine", "texts"],
        ["doctor"],
    ]
    code = (  # in one process: most of the time of a command goes into importing torch
        "import json, sys\n"
        "from ys_llm.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    print('@@@', flush=True)\n"
        "    assert main(words) == 0, words\n"
    )
    shown = started("bin/python", "-c", code, json.dumps(commands)).split("@@@\n")
    _, _, answered, evaluated, examined = shown
    assert answered and "bits per byte" in evaluated and "torch " in examined


def test_the_repository_is_not_used(environment: Path, tmp_path: Path) -> None:
    code = "import ys_llm, ys_llm.config.shipped as s; print(ys_llm.__file__, s.shipped_folder())"
    shown = subprocess.run(
        [environment / "bin/python", "-c", code],
        cwd=tmp_path,
        env=outside(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(environment)) for path in shown.stdout.split())
