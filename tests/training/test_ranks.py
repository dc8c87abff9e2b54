"""Training in several processes: the number of processes is no part of the recipe.

The processes are forked children over gloo, which find each other as under torchrun.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from support.forked import ForkServer
from support.harmed_runs import assert_same_end, error_line
from support.rank_runs import RankRuns, places
from support.training_runs import column, last_tensors, rows_of, sentences, write_corpus

from ys_llm.cli.main import main
from ys_llm.errors import EXIT_TERMINATED, EXIT_USAGE, UserError
from ys_llm.system.place import Place
from ys_llm.training.ranks import join
from ys_llm.training.ranks.group import LeaveQuietly, Ranks
from ys_llm.training.ranks.start import Start, agree_on_start

LOSS = 2e-6  # of rounding, in nats per token: sums in another order
LAST_DIGIT = 5e-7  # of a float32 between 4 and 8
OFTEN = ("train.checkpoint_interval=2", "train.eval_interval=3")
STAGES = "[{seq_len: 8, batch_size: 5, steps: 3}, {seq_len: 16, batch_size: 4, steps: 3}]"
STREAMS = ("data.batching=contiguous", f"train.stages={STAGES}")
RECIPES = {
    "windows": ("model.dropout=0.2",),
    "streams": STREAMS,
    "documents": ("data.batching=documents", "model.copy.window=8", "train.grad_accum_steps=2"),
}
HARD = (*OFTEN, *STREAMS, "model.dropout=0.2")  # all that a restart must carry over


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> RankRuns:
    folder = tmp_path_factory.mktemp("ranks")
    write_corpus(folder / "corpus", sentences(40))
    return RankRuns(forks, folder, folder / "corpus")


def assert_close(run: Path, other: Path, *, losses: float = LOSS) -> None:
    """The same steps, up to rounding."""
    for name in ("step", "tokens", "learning_rate"):
        assert column(run, name) == column(other, name)
    for name in ("loss", "val_loss", "val_bits_per_byte"):
        ours, theirs = ([row.get(name) for row in rows_of(r)] for r in (run, other))
        assert [x is None for x in ours] == [x is None for x in theirs]
        gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert max(gaps, default=0.0) <= losses, (name, gaps)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_as_one(runs: RankRuns, recipe: str) -> None:
    changes = (*RECIPES[recipe], *OFTEN)
    one, two = (runs.train(f"{recipe}-{n}", n, *changes) for n in (1, 2))
    assert_close(two, one)
    ours, theirs = last_tensors(two), last_tensors(one)
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_a_run_goes_on_under_another_number_of_processes(runs: RankRuns) -> None:
    whole = runs.train("whole", 1, *HARD)
    before = 1
    for size, steps in ((2, 4), (1, 5), (3, 6)):
        stages = STAGES.replace("steps: 3}]", f"steps: {steps - 3}}}]")
        ended = runs.end(runs.start(size, "run=parts", *HARD, f"train.stages={stages}"))
        assert [e.code for e in ended] == [0] * size, ended
        said = f"processes was {before} and is now {size}"
        assert (said in ended[0].stderr) == (steps > 4)
        before = size
    parts = runs.folder / "runs" / "parts"
    assert column(parts, "step") == column(whole, "step")
    gaps = zip(column(parts, "loss"), column(whole, "loss"), strict=True)
    assert max(abs(a - b) for a, b in gaps) <= LOSS


RECORDS = "".join(
    f"Which pet is number {n}?<start>The {'cat ' * (n % 5)}pet.<end>\n" for n in range(30)
)
CHAT = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "%s"}]}'
TUNED = (
    "train.init_from=base",
    "data.batching=documents",
    "train.seq_len=48",
    "train.eval_interval=3",
)
METHODS = {
    "full": ("sft.method=full", "sft.replay=0.5", "data.long_documents=carry"),
    "lora": ("sft.method=lora", "sft.lora.rank=2", "sft.lora.dropout=0.2"),
    "state": ("sft.method=state",),
}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m == "full" else pytest.mark.slow) for m in METHODS]
)
def test_two_processes_fine_tune_as_one(runs: RankRuns, method: str) -> None:
    """Replies of unequal length: the mean is that of all tokens that are learned."""
    if not (runs.folder / "runs" / "base").exists():
        runs.train("base", 1)
    text, name = RECORDS, "records.txt"
    if method == "lora":  # with tokens that the base does not have
        text = "\n".join(CHAT % (n, "yes " * (1 + n % 7)) for n in range(1, 30))
        name = "chat.jsonl"
    (runs.folder / name).write_text(text)
    changes = (*TUNED, *METHODS[method], f"data.path={runs.folder / name}")
    one, two = (runs.train(f"{method}-{n}", n, *changes) for n in (1, 2))
    assert_close(two, one)
    for tuned in (one, two):
        forgotten = [row.get("base_bits_per_byte") for row in rows_of(tuned)]
        assert any(forgotten) == (method != "state")
    if method != "full":
        runs.train(f"{method}-2", 1, *changes, "train.max_steps=8")  # taken up by one process


SHARDED = (*HARD, "train.shard=true", "model.n_layers=2")


def test_shared_weights_train_as_replicated_ones(runs: RankRuns) -> None:
    """FSDP2 against DDP: the same losses and checkpoints, which either takes up from the other."""
    replicated = runs.train("replicated", 2, *HARD, "model.n_layers=2", "train.sample_interval=3")
    sharded = runs.train("sharded", 2, *SHARDED, "train.sample_interval=3")
    assert_close(sharded, replicated, losses=LAST_DIGIT)
    ours, theirs = last_tensors(sharded), last_tensors(replicated)
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    stages = STAGES.replace("steps: 3}]", "steps: 1}]")
    runs.train("taken-up", 2, *SHARDED, f"train.stages={stages}")
    alone = runs.train("taken-up", 1, *HARD, "model.n_layers=2")
    gaps = zip(column(alone, "loss"), column(replicated, "loss"), strict=True)
    assert max(abs(a - b) for a, b in gaps) <= LOSS


@pytest.mark.slow
def test_shared_weights_are_killed_and_rolled_back_like_others(runs: RankRuns) -> None:
    unbroken = runs.train("shards", 2, *SHARDED)
    runs.kill("shards-killed", 2, 1, 4, *SHARDED)
    assert_same_end(runs.train("shards-killed", 2, *SHARDED), unbroken, same_config=False)
    bad = (*OFTEN, "train.shard=true", "train.learning_rate=1e30", "train.rollback_lr_factor=1e-33")
    assert (runs.train("shards-bad", 2, *bad) / "rollbacks.json").exists()


def test_a_killed_process_and_a_restart_change_no_bit(runs: RankRuns) -> None:
    unbroken = runs.train("unbroken", 2, *HARD)
    runs.kill("killed", 2, 1, 4, *HARD)  # in its fifth step
    runs.kill("killed", 2, 0, 30, *HARD, life=1)  # while it writes
    ended = runs.end(runs.start(2, "run=killed", *HARD, life=2))
    assert [e.code for e in ended] == [0, 0], ended
    assert "restart 2" in ended[0].stderr
    assert_same_end(runs.folder / "runs" / "killed", unbroken, same_config=False)


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs: RankRuns) -> None:
    unbroken = runs.train("unstopped", 2, *HARD)
    faults = {1: {"at": 3, "kind": "SIGTERM"}}
    first, other = runs.end(runs.start(2, "run=stopped", *HARD, faults=faults))
    assert (first.code, other.code) == (EXIT_TERMINATED, EXIT_TERMINATED)
    assert "stopped by SIGTERM at step" in error_line(first)
    assert other.stderr == ""
    run = runs.train("stopped", 2, *HARD)
    assert_same_end(run, unbroken, same_config=False, same_checkpoints=False)


def test_bad_numbers_are_rolled_back_by_all_processes(runs: RankRuns) -> None:
    changes = (*OFTEN, "train.learning_rate=1e30", "train.rollback_lr_factor=1e-33")
    one, two = (runs.train(f"bad-{n}", n, *changes) for n in (1, 2))
    rollbacks = [json.loads((run / "rollbacks.json").read_text()) for run in (one, two)]
    assert [r["step"] for r in rollbacks[1]["rollbacks"]] == [
        r["step"] for r in rollbacks[0]["rollbacks"]
    ]
    described = [sorted((run / "post-mortem").glob("*.json"))[0] for run in (one, two)]
    found = [json.loads(path.read_text())["diagnosis"] for path in described]
    assert found[1]["kind"] == found[0]["kind"]


def test_only_the_first_process_writes_and_speaks(runs: RankRuns, tmp_path: Path) -> None:
    read_only = {1: {"at": 0, "kind": "EROFS", "below": str(tmp_path)}}
    first, other = runs.end(
        runs.start(2, "run=one-writes", *OFTEN, faults=read_only, folders={1: tmp_path})
    )
    assert (first.code, other.code) == (0, 0), other.stderr
    assert "2 on this machine, each with 2 of 4 rows" in first.stderr
    assert (other.stderr, list(tmp_path.iterdir())) == ("", [])
    assert column(runs.folder / "runs" / "one-writes", "step") == [1, 2, 3, 4, 5, 6]


def test_early_stopping_is_decided_alike(runs: RankRuns) -> None:
    changes = ("train.eval_interval=1", "train.patience=1", "train.learning_rate=3")
    one, two = (runs.train(f"early-{n}", n, *changes) for n in (1, 2))
    assert column(two, "step") == column(one, "step")
    assert len(column(one, "step")) < 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("train.batch_size=1",), "2 processes share batches of 1 rows"),
        (("train.reference_run=whole", "train.select_fraction=0.5"), "in one process"),
        (("train.shard=true", "train.optimizer=muon"), "muon, which needs whole matrices"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    runs: RankRuns, changes: tuple[str, ...], says: str
) -> None:
    first, other = runs.end(runs.start(2, "run=refused", *changes))
    assert (first.code, other.code, other.stderr) == (EXIT_USAGE, EXIT_USAGE, "")
    assert says in error_line(first)


def test_another_machine_makes_the_same_shards_or_is_refused(
    runs: RankRuns, tmp_path: Path
) -> None:
    for name, texts in (("same", sentences(40)), ("other", sentences(41))):
        write_corpus(tmp_path / name / "corpus", texts)
        changes = (f"run=machines-{name}", "data.path=corpus")
        children = runs.start(2, *changes, folders={1: tmp_path / name}, machines=2)
        first, second = runs.end(children)
        if name == "same":
            assert (first.code, second.code) == (0, 0), second.stderr
            assert "2 on 2 machines" in first.stderr
        else:
            assert first.code == second.code != 0
            assert "process 1 of 2: corpus holds other training text" in error_line(second)


def test_cleaning_is_refused_where_a_restart_would_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place,) = places(2, machines=2)[:1]
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["train", "clean", "--run", "mine"])
    assert "type first: ys train clean --run mine" in capsys.readouterr().err


class _Told(Ranks):
    """Processes that give these numbers."""

    def gathered(self, values: Any) -> list[list[float]]:
        return [[1.0], [1.0], [2.0]]


@pytest.mark.parametrize("rank", [0, 2])
def test_other_code_is_refused_by_all_and_said_by_one(rank: int) -> None:
    place = Place(rank, 3, rank, 3, 0, 0, "localhost", 1, launcher_store=False)
    expected = UserError if rank == 0 else LeaveQuietly
    with pytest.raises(expected) as caught:
        join._check_code(_Told(place))
    if rank == 0:
        assert "process 2 of 3 runs other code" in str(caught.value)


def test_processes_agree_on_their_start_whatever_their_launchers_have_counted() -> None:
    """One died, and only the launcher on its machine counts that; its old token is still there."""
    hub, patience = dist.HashStore(), timedelta(seconds=20)  # type: ignore[attr-defined]

    def begin(*counted: int) -> list[Start]:
        every = [Place(r, 3, 0, 1, r, n, "localhost", 1, True) for r, n in enumerate(counted)]
        with ThreadPoolExecutor() as threads:
            first = threads.submit(agree_on_start, hub, every[0], patience)
            others = list(threads.map(lambda p: agree_on_start(hub, p, patience), every[1:]))
            return [first.result(), *others]

    before, after = begin(0, 0, 0), begin(0, 1, 0)
    assert len(set(before)) == len(set(after)) == 1
    assert (before[0].restarts, after[0].restarts) == (0, 1)
    assert before[0].name != after[0].name
    with pytest.raises(UserError, match="process 1 of 3 has waited"):
        agree_on_start(hub, Place(1, 3, 0, 1, 1, 0, "localhost", 1, True), timedelta(seconds=0.1))


@pytest.mark.parametrize(("size", "count"), [(2, 7), (3, 8), (4, 4), (5, 3)])
def test_every_row_is_read_by_one_process(size: int, count: int) -> None:
    every = [Place(r, size, r, size, 0, 0, "localhost", 1, False) for r in range(size)]
    rows = [row for place in every for row in range(count)[Ranks(place).rows(count)]]
    assert rows == list(range(count))
