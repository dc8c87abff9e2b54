"""The description of a cluster, for plans: devices, memory, links, failures, power."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.strict_reader import parse_dataclass, setting
from ys_llm.config.yaml_io import read_yaml
from ys_llm.errors import EXIT_USAGE, UserError

_MOST = 1_000_000  # nodes, or devices of one


@dataclass(frozen=True)
class Cluster:
    """What a plan needs to know of the machines; a device is a GPU, or a computer without one."""

    nodes: int = setting(1, "machines", minimum=1, maximum=_MOST)
    devices_per_node: int = setting(1, "devices of each", minimum=1, maximum=_MOST)
    memory_gb: float = setting(8.0, "memory of a device, GB", above=0)
    dtype: Literal["bf16", "fp32"] = setting("bf16", "dtype of the matmuls")
    tflops: float = setting(0.2, "peak of a device in that dtype, TFLOP/s", above=0)
    utilization: float = setting(0.4, "share of the peak that a step reaches", above=0, maximum=1)
    backend: Literal["gloo", "nccl"] = setting(
        "gloo", "what sends tensors: gloo between CPUs, nccl between GPUs"
    )
    node_gbit: float = setting(50.0, "a device to others of its node, Gbit/s each way", above=0)
    network_gbit: float = setting(1.0, "a node to other nodes, Gbit/s each way", above=0)
    latency_us: float = setting(50.0, "of a message between nodes, microseconds", minimum=0)
    storage_gb: float = setting(0.5, "GB/s at which a checkpoint is written", above=0)
    mtbf_hours: float = setting(10_000.0, "hours between two failures of one device", above=0)
    restart_minutes: float = setting(5.0, "from a failure until training goes on", minimum=0)
    jitter: float = setting(
        0.02, "standard deviation of a device's step time, as a share of it", minimum=0, below=1
    )
    watts: float = setting(100.0, "of a device with its share of the machine", minimum=0)
    pue: float = setting(1.2, "power of the building over that of the machines", minimum=1)

    @property
    def devices(self) -> int:
        """All of them."""
        return self.nodes * self.devices_per_node


def read_cluster(name: str) -> Cluster:
    """The cluster in that file, or the shipped one of that name; UserError for what is wrong."""
    path = _find(name)
    text = read_yaml(path)
    if text.problems:
        line, problem = text.problems[0]
        raise UserError(f"{path}:{line}: {problem}", exit_code=EXIT_USAGE)
    return parse_dataclass(Cluster, text.values, where=str(path))


def _find(name: str) -> Path:
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path  # if it does not exist, the reader reports it
    shipped = {file.stem: file for file in sorted((shipped_folder() / "clusters").glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    raise UserError(
        f"there is no file {name}, and no shipped cluster of that name",
        f"Did you mean {near[0]}?" if near else f"Those that are shipped: {', '.join(shipped)}.",
        exit_code=EXIT_USAGE,
    )
