"""The scripts of docs/recipes: each is run with stand-ins for the programs that it starts.

A stand-in writes down its words. Those after `torchrun` are read by torch's parser, and those of
`ys` by its own, configuration included.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from torch.distributed import run as torchrun

from ys_llm.cli.common import resolve, typed
from ys_llm.cli.main import parse
from ys_llm.cli.train import Arguments
from ys_llm.config.schema import Config

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
SCRIPTS = sorted(RECIPES.glob("*.sh"))
WRITES_ITS_WORDS = """\
#!/bin/sh
{ printf '%s\\037' "${0##*/}" "$@"; echo; } >> "$CALLS"
"""
GIVEN = ("--run", "mine", "--data", "my texts", "--set", "data.batching=shuffled")


class StandIns:
    """A folder of programs that write their words to a file, and end as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "programs", folder / "calls"
        self.folder.mkdir()

    def add(self, name: str, then: str = "exit 0") -> None:
        program = self.folder / name
        program.write_text(f"{WRITES_ITS_WORDS}{then}\n", encoding="utf-8")
        program.chmod(0o755)

    def run(
        self, script: str, *words: str, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        ours = {
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls),
        }
        command = ["bash", "-c", script, *words]
        return subprocess.run(
            command, env={**os.environ, **ours, **environment}, timeout=30, cwd=self.folder
        )

    def called(self, name: str) -> list[list[str]]:
        lines = self.calls.read_text(encoding="utf-8").splitlines()
        calls = [line.split("\037")[:-1] for line in lines]
        return [words for program, *words in calls if program == name]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    monkeypatch.chdir(tmp_path)  # where there are no runs
    return StandIns(tmp_path)


def script_of(name: str) -> str:
    return (RECIPES / name).read_text(encoding="utf-8")


def config_of(words: list[str]) -> Config:
    """The configuration of `ys WORDS`; SystemExit or UserError for what `ys` would refuse."""
    return resolve(typed(Arguments, parse(words))).config


def assert_trains_on(words: list[str], **expected: object) -> None:
    """What torchrun is told: so many machines and processes, and a command of `ys`."""
    told = torchrun.parse_args(words)
    assert (told.module, told.training_script) == (True, "ys_llm")
    for name, value in expected.items():
        assert getattr(told, name) == value, name
    config = config_of(told.training_script_args)
    assert (config.run, config.data.path in ("my texts", "my_texts")) == ("mine", True)


def test_every_script_is_one() -> None:
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", path], check=True)


def test_two_machines_are_told_apart(programs: StandIns) -> None:
    programs.add("torchrun")
    for number in ("0", "1"):
        programs.run(script_of("two_machines.sh"), "bash", number, *GIVEN, FIRST="first")
    first, second = programs.called("torchrun")
    common = {"nnodes": "2", "nproc_per_node": "8", "master_addr": "first", "master_port": 29400}
    assert_trains_on(first, node_rank=0, max_restarts=3, **common)
    assert_trains_on(second, node_rank=1, max_restarts=3, **common)


def slurm(programs: StandIns, torchrun_ends: str, job: str, **given: str) -> int:
    """Submit, with a Slurm whose `show job` says this of the job; the script's exit code."""
    programs.add("torchrun", torchrun_ends)
    programs.add("srun", 'exec "$@"')
    programs.add("scancel", 'kill -TERM "$(cat torchrun.pid)"')
    programs.add(
        "scontrol", f'case "$2" in hostnames) echo n1; echo n2 ;; job) echo "{job}" ;; esac'
    )
    about = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
    return programs.run(script_of("slurm.sh"), "slurm.sh", *GIVEN, **about, **given).returncode


def requeued(programs: StandIns) -> bool:
    return ["requeue", "12345"] in programs.called("scontrol")


def test_slurm_trains_on_its_nodes(programs: StandIns) -> None:
    assert slurm(programs, "exit 0", "PreemptTime=None") == 0
    (words,) = programs.called("torchrun")
    where = {"rdzv_backend": "c10d", "rdzv_id": "12345", "rdzv_endpoint": "n1:22345"}
    assert_trains_on(words, nnodes="2", nproc_per_node="8", **where)
    assert not requeued(programs)


@pytest.mark.parametrize(
    ("job", "again"), [("PreemptTime=2026-01-02", True), ("PreemptTime=None", False)]
)
def test_slurm_queues_a_job_again_that_was_preempted_and_none_that_failed(
    programs: StandIns, job: str, again: bool
) -> None:
    assert slurm(programs, "exit 1", job) == (0 if again else 1)
    assert requeued(programs) == again


def test_slurm_stops_a_job_whose_time_is_up_and_queues_it_again(programs: StandIns) -> None:
    waits = 'echo $$ > torchrun.pid; kill -USR1 "$PPID"; trap "exit 1" TERM'
    waits += "; while :; do sleep 0.02; done"
    assert slurm(programs, waits, "PreemptTime=None") == 0
    assert programs.called("scancel") == [["--signal=TERM", "12345"]]
    assert requeued(programs)


def test_a_spot_instance_goes_on_from_its_bucket(programs: StandIns) -> None:
    task: Mapping[str, object] = yaml.safe_load(script_of("spot.yaml"))
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}
    about = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    about["SKYPILOT_NODE_IPS"] = "10.0.0.1\n10.0.0.2"
    programs.add("torchrun")
    for number in ("1", "0"):
        assert not (programs.folder / "runs").is_symlink()  # the folder is that of the first
        programs.run(str(task["run"]), SKYPILOT_NODE_RANK=number, **about)
    assert str((programs.folder / "runs").readlink()) in task["file_mounts"]  # type: ignore[operator]
    for number, words in zip((1, 0), programs.called("torchrun"), strict=True):
        assert_trains_on(words, nnodes="2", node_rank=number, master_addr="10.0.0.1")


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (2, 1), (143, 1), (1, 2), (4, 2)])
def test_a_replica_is_started_again_unless_it_is_done_or_mistaken(
    programs: StandIns, code: int, starts: int
) -> None:
    programs.add("ys", f"test -e once && exit 0; touch once; exit {code}")
    ended = programs.run(script_of("replica.sh"), "x", *GIVEN, LIGHTHOUSE="first", PAUSE="0")
    assert ended.returncode == (code if starts == 1 else 0)
    words, *_ = calls = programs.called("ys")
    assert len(calls) == starts
    assert config_of(words).run == "mine"
    assert "--elastic" in words


def test_a_lighthouse_is_started_again(programs: StandIns) -> None:
    programs.add("torchft_lighthouse", "exit 1")
    programs.add("sleep", 'test -e once && kill "$PPID"; touch once')
    assert programs.run(script_of("lighthouse.sh")).returncode != 0
    first, second = programs.called("torchft_lighthouse")
    assert first == second
    assert first[:2] == ["--bind", "[::]:29510"]
