"""What `ys plan` computes, beside what real trainings of this machine do.

python -m benchmarks.plan [CASE ...]     trains these cases, or all, and writes benchmarks/plan.json
python -m benchmarks.plan --table        prints it

Each case trains some steps in one process or two: in two networks with a link whose rate is
limited, where they are those of two machines. The plan is given a description of this machine with
three measured numbers: the rate of a large matmul, the share of it that a step of the first case
reaches, and the rate of an all-reduce between two of its processes. Needs root, for the networks,
and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.machine import ROOT, large_matmul, matmul_flops
from benchmarks.networks import Link, two_networks
from benchmarks.plan_runs import Placing, told, trained
from benchmarks.rounds import Effort
from ys_llm.config.cluster import Cluster
from ys_llm.config.schema import TrainConfig
from ys_llm.config.shipped import find_config
from ys_llm.config.sources import load_config
from ys_llm.csrc import loader
from ys_llm.evaluation.compare import code_version, hardware
from ys_llm.ops.precision import Precision
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import cpu_class, inspect_machine
from ys_llm.training.compute import resolve_dtype
from ys_llm.training.plan import Plan, Workload, plans, workload_of

FILE = ROOT / "benchmarks/plan.json"
TEXT_BYTES = 300_000
SETTINGS = (
    *(
        "train.optimizer=adamw",
        "train.minutes=null",
        "train.eval_interval=1000000",
        "train.shard=false",
    ),
    *("train.checkpoint_interval=1000000", "train.sample_interval=0", "train.eval_tokens=512"),
)
# Next to nothing of a model: what a process takes for all that is no model.
NOTHING = (
    *("model.d_model=16", "model.n_layers=1", "model.d_mlp=16", "model.copy.window=0"),
    *("train.batch_size=2", "train.seq_len=16"),
)
DDP, FSDP2, DILOCO = "DDP", "FSDP2", "DiLoCo"
INNER_STEPS, ROUNDS = 10, 3  # of DiLoCo; the first round warms up
REDUCED_MEGABYTES = 20.0
SPEED, SENT, MEMORY = "tokens/s", "bytes/token", "MB each"
NEAR = 0.2  # a plan is near what was measured, as a share of it
# What is further off, and what is known of why.
_WIDER = "a wider model reaches more of the peak than the first case, whose share the plan is given"
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("default-1", SPEED): _WIDER,
    ("default-2-ddp", SPEED): _WIDER,
    ("default-1", MEMORY): "not known",
}
_GBIT = 1e9 / 8  # bytes a second
_REPEATS = 7


@dataclass(frozen=True)
class Case:
    """A training that is planned and run; `mbit` of the link between two machines, 0 = one."""

    config: str
    method: str
    processes: int
    mbit: float = 0.0
    steps: int = 8

    @property
    def name(self) -> str:
        """As it is typed."""
        where = f"-{self.mbit:g}mbit" if self.mbit else ""
        how = f"{self.processes}-{self.method.lower()}" if self.processes > 1 else "1"
        return f"{self.config}-{how}{where}"

    @property
    def described(self) -> str:
        """As the table has it."""
        if self.processes == 1:
            return f"`{self.config}`, one process"
        where = f"machines, {self.mbit:g} Mbit/s" if self.mbit else "processes"
        return f"`{self.config}`, two {where}, {self.method}"

    @property
    def placing(self) -> Placing:
        """The processes: a core for each of two, all cores for one."""
        cores = inspect_machine().usable_cores
        machines = 2 if self.mbit else 1
        return Placing(self.processes, machines, max(1, cores // self.processes))


CASES = (
    Case("quickstart", DDP, 1),  # by which utilization is known
    Case("quickstart", DDP, 2),
    Case("quickstart", FSDP2, 2),
    Case("default", DDP, 1),
    Case("default", DDP, 2),
    Case("default", FSDP2, 2),
    Case("quickstart", DDP, 2, mbit=100),
    Case("quickstart", FSDP2, 2, mbit=100),
    Case("quickstart", DILOCO, 2, mbit=100),
)


def main(words: Sequence[str]) -> None:
    """Train and write the results, or print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(names))
    parser.add_argument("--table", action="store_true", help="print what there is")
    arguments = parser.parse_args(words)
    if unknown := set(arguments.cases) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if not arguments.table:
        measure([case for case in CASES if case.name in (arguments.cases or names)])
    print("\n".join(markdown(json.loads(FILE.read_text(encoding="utf-8")))))


def measure(cases: Sequence[Case]) -> None:
    """Train these cases; those of before are kept. The file is written after each."""
    loader.build()
    commit = code_version()
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"measured": {}}
    with two_networks() as link, tempfile.TemporaryDirectory(prefix="ys-plan-") as folder:
        text = _text(Path(folder))
        if "machine" not in found:
            found["machine"] = _machine(link, Path(folder))
        for case in cases:
            here = Path(folder) / case.name
            here.mkdir()
            if case.mbit:
                link.limit(case.mbit)
            found["measured"][case.name] = {
                "commit": commit,
                **(diloco if case.method == DILOCO else training)(case, link, text, here),
            }
            print(f"{case.name}  {found['measured'][case.name]}", file=sys.stderr, flush=True)
            write_atomically(FILE, json.dumps(found, indent=1) + "\n")


def _text(folder: Path) -> Path:
    text = folder / "text"
    text.mkdir()
    tales = (ROOT / "training_data/tales-01.md").read_text(encoding="utf-8")
    part = tales[: tales.rfind("<end>", 0, TEXT_BYTES) + 6]
    (text / "tales.md").write_text(part, encoding="utf-8")
    return text


def _machine(link: Link, folder: Path) -> dict[str, Any]:
    """What does not depend on a model: peaks, and an all-reduce of its processes."""
    here = folder / "machine"
    here.mkdir()
    dtype, _ = resolve_dtype(TrainConfig(), torch.device("cpu"))
    matmul, seconds = large_matmul(dtype, Effort()), []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        matmul()
        seconds.append(time.perf_counter() - began)
    (reduced,) = told(link, Placing(2, 1, 1), ["reduce", f"{REDUCED_MEGABYTES:g}"], here)
    return {
        "hardware": hardware("cpu"),
        "class": cpu_class(),
        "torch": torch.__version__,
        "dtype": dtype,
        "tflops": matmul_flops(Effort()) / min(seconds) / 1e12,
        "node_gbit": REDUCED_MEGABYTES * 1e6 / _GBIT / reduced["seconds"],
        "memory_gb": inspect_machine().memory_bytes / 1e9,
    }


def training(case: Case, link: Link, text: Path, folder: Path) -> dict[str, Any]:
    """What `ys train` does."""
    shared = f"train.shard={'true' if case.method == FSDP2 else 'false'}"
    settings = [*SETTINGS, f"data.path={text}", shared]
    config, placing = case.config, case.placing
    found = trained(link, placing, config, settings, case.steps, folder)
    if case.mbit:  # that takes no other memory
        return found
    (folder / "nothing").mkdir()
    nothing = trained(link, placing, config, [*settings, *NOTHING], 1, folder / "nothing")
    dtype, _ = resolve_dtype(TrainConfig(), torch.device("cpu"))
    return {
        **found,
        "memory_bytes": found["peak_bytes"] - nothing["peak_bytes"],
        "kept_bytes": _work(config, found.get("vocab_size"), dtype).kept_bytes,
    }


def diloco(case: Case, link: Link, text: Path, folder: Path) -> dict[str, Any]:
    """What DiLoCo does; rows of a worker are half of those of a step."""
    (stage,) = load_config(find_config(case.config), overrides=SETTINGS).config.train.plan
    rows = stage.batch_size // case.processes
    settings = [*SETTINGS, f"train.batch_size={rows}", "train.threads=1"]
    counts = [str(ROUNDS), str(INNER_STEPS)]
    words = ["diloco", case.config, *counts, str(text), *settings]
    first, *rounds = told(link, case.placing, words, folder)
    tokens = INNER_STEPS * stage.batch_size * stage.seq_len
    return {
        "round_seconds": [round(one["seconds"], 3) for one in rounds],
        "exchange_seconds": [round(one["exchange_seconds"], 3) for one in rounds],
        "tokens_per_second": tokens / fmean(one["seconds"] for one in rounds),
        "bytes_per_token": (rounds[-1]["sent_bytes"] - first["sent_bytes"]) / tokens / len(rounds),
    }


def cluster_of(case: Case, found: Mapping[str, Any]) -> Cluster:
    """The description of this machine that the plan of a case is made from."""
    machine, processes = found["machine"], case.processes
    machines = 2 if case.mbit else 1
    return Cluster(
        nodes=machines,
        devices_per_node=processes // machines,
        memory_gb=machine["memory_gb"] / processes,
        dtype=machine["dtype"],
        tflops=machine["tflops"] / processes,
        utilization=_utilization(found),
        node_gbit=machine["node_gbit"],
        network_gbit=(case.mbit or 1000) / 1000,
        jitter=0.0,
    )


def _utilization(found: Mapping[str, Any]) -> float:
    """Tokens/s of the first case times FLOP of a token, over the peak."""
    first = CASES[0]
    rate = found["measured"][first.name]["tokens_per_second"]
    flops = work_of(first, found, Cluster(dtype=found["machine"]["dtype"])).flops
    return float(rate * flops / (1e12 * found["machine"]["tflops"]))


def work_of(case: Case, found: Mapping[str, Any], cluster: Cluster) -> Workload:
    """What the case trains, as `ys plan` counts it; a short text has fewer tokens to know.

    What is kept of a token depends on the backend: it is what was counted with that of the run.
    """
    measured = found["measured"][case.name]
    work = _work(case.config, measured.get("vocab_size"), cluster.dtype)
    return replace(work, kept_bytes=measured["kept_bytes"]) if "kept_bytes" in measured else work


@cache
def _work(name: str, known: int | None, dtype: Precision) -> Workload:
    changes = [*SETTINGS, *([f"tokenizer.vocab_size={known}"] if known else [])]
    config = load_config(find_config(name), overrides=changes).config
    return workload_of(config, Cluster(dtype=dtype))


def planned(case: Case, found: Mapping[str, Any]) -> Plan:
    """What `ys plan` says of the case."""
    cluster = cluster_of(case, found)
    work = work_of(case, found, cluster)
    every = {plan.method: plan for plan in plans(work, cluster, inner_steps=INNER_STEPS)}
    return every[case.method]


def compared(found: Mapping[str, Any]) -> Iterator[tuple[Case, str, float, float]]:
    """Each case and quantity with what was planned and what was measured."""
    for case in CASES:
        if case.name not in found["measured"]:
            continue
        plan, seen = planned(case, found), found["measured"][case.name]
        yield case, SPEED, plan.tokens_per_second, seen["tokens_per_second"]
        if case.processes > 1:
            yield case, SENT, plan.wire_bytes, seen["bytes_per_token"]
        if "memory_bytes" in seen:
            yield case, MEMORY, plan.memory_bytes, seen["memory_bytes"]


def markdown(found: Mapping[str, Any]) -> list[str]:
    """The lines of a table."""
    columns = (SPEED, SENT, MEMORY)
    lines = [
        "| | " + " | ".join(f"{name}: plan | run | gap" for name in columns) + " |",
        "|---|" + "---:|" * 9,
    ]
    cells: dict[str, dict[str, str]] = {}
    for case, name, plan, run in compared(found):
        scale = 1e-6 if name == MEMORY else 1
        text = f"{plan * scale:,.0f} | {run * scale:,.0f} | {plan / run - 1:+.0%}"
        cells.setdefault(case.described, {})[name] = text.replace("%", " %")
    for described, row in cells.items():
        lines.append(
            f"| {described} | " + " | ".join(row.get(c, "– | – | –") for c in columns) + " |"
        )
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
