"""Replicas that come and go: what they send each other, what they refuse, one killed and back."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from ys_llm.cli.main import main
from ys_llm.training.elastic.transport import StateTransport, packed, unpacked

ROOT = Path(__file__).resolve().parents[2]
needs_torchft = pytest.mark.skipif(
    importlib.util.find_spec("torchft") is None, reason="the extra `elastic` is not installed"
)
STATE = {
    "user": {"default": {"w": torch.arange(6.0).reshape(2, 3), "n": [1, 2.5, None, True]}},
    "outer": {0: {"momentum": torch.ones(2, dtype=torch.bfloat16)}},
    "empty": {},
}
SMALL = [
    *("--set", "data.batching=shuffled", "--set", "tokenizer.vocab_size=300"),
    *("--set", "model.d_model=32", "--set", "model.n_layers=1", "--set", "model.d_mlp=32"),
    *("--set", "train.batch_size=2", "--set", "train.seq_len=16", "--set", "train.threads=1"),
    *("--set", "train.checkpoint_interval=50", "--set", "train.sample_interval=0"),
    *("--set", "train.dtype=fp32"),
]


def test_a_state_survives_being_sent() -> None:
    found = unpacked(packed(STATE))
    torch.testing.assert_close(found["user"]["default"]["w"], torch.arange(6.0).reshape(2, 3))
    assert found["user"]["default"]["n"] == [1, 2.5, None, True]
    assert found["outer"][0]["momentum"].dtype == torch.bfloat16
    assert found["empty"] == {}


def test_bytes_that_are_no_state_are_refused() -> None:
    with pytest.raises(SafetensorError):
        unpacked(b"\x80\x04pickled")


def test_a_replica_is_given_the_step_it_asks_for_and_waits_for_it() -> None:
    patience = timedelta(seconds=10)
    here, there = StateTransport("127.0.0.1", patience), StateTransport("127.0.0.1", patience)
    try:
        here.send_checkpoint([1], 7, STATE, patience)
        found = there.recv_checkpoint(0, here.metadata(), 7, patience)
        assert found["user"]["default"]["n"][0] == 1
        here.disallow_checkpoint()
        with pytest.raises(TimeoutError):
            there.recv_checkpoint(0, here.metadata(), 7, timedelta(seconds=0.2))
    finally:
        here.shutdown()
        there.shutdown()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--elastic", "host:many"], "--elastic must be HOST or HOST:PORT, found host:many"),
        (["--replicas", "2"], "--replicas must be 0 or more, and needs --elastic"),
        (["--elastic", "host", "--processes", "2"], "cannot be combined"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--data", str(ROOT / "README.md"), *words])
    assert message in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """A folder with text, a lighthouse, and replicas that are started in it."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = {**os.environ, "RUST_LOG": "error", **(environment or {})}
        (folder / "texts").mkdir()
        text = (ROOT / "training_data/tales-01.md").read_text(encoding="utf-8")
        (folder / "texts/tales.md").write_text(
            text[: text.rfind("<end>", 0, 60_000) + 6], encoding="utf-8"
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def lighthouse(self) -> None:
        lighthouse = Path(sys.executable).with_name("torchft_lighthouse")
        words = ["--bind", f"[::]:{self.port}", "--min_replicas", "1"]
        times = ["--join_timeout_ms", "3000", "--heartbeat_timeout_ms", "1500"]
        self.start("lighthouse", [str(lighthouse), *words, *times])
        ends = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert time.monotonic() < ends, self.log("lighthouse")
                time.sleep(0.05)

    def replica(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        ys = [sys.executable, "-m", "ys_llm", "train", "--data", "texts", "--run", name]
        return self.start(name, [*ys, *SMALL, "--elastic", f"127.0.0.1:{self.port}", *words])

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def rows(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [row for row in map(json.loads, lines) if "piece" in row]

    def wait_until(self, name: str, rows: int) -> None:
        ends = time.monotonic() + 120
        while len(self.rows(name)) < rows:
            stopped = any(process.poll() for process in self.processes)
            assert time.monotonic() < ends and not stopped, self.log(name)
            time.sleep(0.05)

    def ended(self, name: str, process: subprocess.Popen[bytes]) -> int:
        process.wait(timeout=200)
        assert process.returncode == 0, self.log(name)
        return process.returncode

    def weights(self, name: str, step: int) -> bytes:
        path = f"runs/{name}/checkpoints/step-{step:08d}/model.safetensors"
        return (self.folder / path).read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@needs_torchft
@pytest.mark.slow
def test_a_replica_that_is_killed_and_comes_back_loses_no_text_and_doubles_none(
    place: Place,
) -> None:
    place.lighthouse()
    steps = ["--set", "train.max_steps=1500"]
    first, second = place.replica("a", *steps), place.replica("b", *steps)
    place.wait_until("b", 40)
    place.wait_until("a", 40)
    second.send_signal(signal.SIGKILL)
    second.wait()
    before = place.rows("b")
    second = place.replica("b", *steps)
    place.ended("a", first)
    place.ended("b", second)
    assert "caught up from step" in place.log("b")
    assert place.weights("a", 1500) == place.weights("b", 1500)
    by_piece: dict[int, set[tuple[str, int]]] = {}
    after = [row for row in place.rows("b") if row["step"] > before[-1]["step"]]
    for name, rows in (("a", place.rows("a")), ("b", [*before, *after])):
        for row in rows:
            by_piece.setdefault(row["piece"], set()).add((name, row["step"]))
    assert all(len(readers) == 1 for readers in by_piece.values())
    total = sum(row["replicas"] for row in place.rows("a"))
    missing = set(range(max(by_piece) + 1)) - set(by_piece)
    assert len(missing) <= 1  # read by the killed one, whose last row was not written
    assert max(by_piece) >= total - 2
    assert {row["replicas"] for row in place.rows("a")} == {1, 2}


@needs_torchft
@pytest.mark.slow
def test_with_a_spare_the_weights_are_those_of_the_run_where_nobody_died(place: Place) -> None:
    place.lighthouse()
    steps = ["--set", "train.max_steps=600", "--replicas", "2"]
    replicas = {name: place.replica(name, *steps) for name in ("a", "b", "c")}
    place.wait_until("a", 60)
    replicas["b"].kill()
    for name in ("a", "c"):
        place.ended(name, replicas[name])
    calm = {name: place.replica(name, *steps) for name in ("d", "e")}
    for name, process in calm.items():
        place.ended(name, process)
    assert place.weights("a", 600) == place.weights("c", 600) == place.weights("d", 600)
    assert {row["replicas"] for row in place.rows("a")} == {2}


@needs_torchft
@pytest.mark.slow
def test_other_text_is_refused(place: Place) -> None:
    place.lighthouse()
    steps = ["--set", "train.max_steps=2000"]
    place.replica("a", *steps)
    place.wait_until("a", 5)
    other = place.replica("b", *steps, "--set", "train.seed=5")
    assert other.wait(timeout=100) == 2
    assert "another replica of this training reads other text" in place.log("b")


@needs_torchft
@pytest.mark.slow
def test_without_a_lighthouse_one_line_says_how_to_start_it(place: Place) -> None:
    lonely = place.replica("a", "--set", "train.max_steps=5")
    assert lonely.wait(timeout=100) == 4
    assert f"torchft_lighthouse --bind [::]:{place.port}" in place.log("a")
    assert "Traceback" not in place.log("a")


@needs_torchft
@pytest.mark.slow
def test_replicas_wait_for_a_lighthouse_that_is_started_again(place: Place) -> None:
    place.lighthouse()
    replica = place.replica("a", "--set", "train.max_steps=400")
    place.wait_until("a", 20)
    lighthouse = place.processes.pop(0)
    lighthouse.kill()
    lighthouse.wait()
    ends = time.monotonic() + 100
    while "waiting for the lighthouse" not in place.log("a"):
        assert time.monotonic() < ends and replica.poll() is None, place.log("a")
        time.sleep(0.05)
    place.lighthouse()
    place.ended("a", replica)
    assert sorted(row["piece"] for row in place.rows("a")) == list(range(400))


@needs_torchft
@pytest.mark.slow
def test_a_replica_that_is_stopped_saves_and_the_others_go_on(place: Place) -> None:
    place.lighthouse()
    steps = ["--set", "train.max_steps=800"]
    first, second = place.replica("a", *steps), place.replica("b", *steps)
    place.wait_until("b", 20)
    second.send_signal(signal.SIGINT)
    assert second.wait(timeout=100) == 130
    assert "saved" in place.log("b")
    place.ended("a", first)
