"""The processes of one training, and what they tell each other.

Process r of N reads rows [r B // N, (r + 1) B // N) of every batch of B rows. How many there are is
no part of the recipe: whatever a decision depends on is agreed, and added up in one order.

Everything here goes over gloo, from CPU tensors; only gradients take the way of their device. What
is told is JSON, so that nothing is unpickled.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ys_llm.model.state import map_state, tensors_of
from ys_llm.system.place import Place
from ys_llm.system.signals import StopRequest

T = TypeVar("T")


class LeaveQuietly(Exception):
    """This process ends because the training does; another one says why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """The processes of a training; without a `place` this one alone, and nothing is sent."""

    place: Place | None = None
    store: Any = None  # that they have found each other by; torch does not export its type

    @property
    def is_alone(self) -> bool:
        """Whether this is a process that was started without others."""
        return self.place is None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's folder, and speaks for all."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """This process, counted from 0."""
        return 0 if self.place is None else self.place.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.place is None else self.place.size

    @property
    def local_size(self) -> int:
        """How many of them share this machine."""
        return 1 if self.place is None else self.place.local_size

    @property
    def restarts(self) -> int:
        """How often all of them were started before, because one had died."""
        return 0 if self.place is None else self.place.restarts

    def rows(self, count: int) -> slice:
        """This process' share of `count` rows; empty where there are too few."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def ending(self, error: Exception, exit_code: int) -> Exception:
        """What to raise where all processes end with the same error: the first one shows it."""
        return error if self.is_first else LeaveQuietly(exit_code)

    def gathered(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, by rank; each gives as many."""
        if self.is_alone:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return [numbers.tolist() for numbers in every]

    def total(self, value: float) -> float:
        """The sum over all processes, in the order of their ranks."""
        return sum(number for (number,) in self.gathered([value]))

    def agree(self, loss: float, stop: StopRequest) -> tuple[float, StopRequest]:
        """The sum of all losses, and the request to stop that any process was given.

        A process alone keeps its own request, which a later signal still makes true.
        """
        if self.is_alone:
            return loss, stop
        told, agreed = self.gathered((loss, stop.signal)), StopRequest()
        agreed.signal = int(max(number for _, number in told))
        return sum(part for part, _ in told), agreed

    def wait(self) -> None:
        """Until every process has come here."""
        self.gathered([0.0])

    def tell(self, message: T, *, source: int = 0) -> T:
        """What one process, the first, tells the others: plain data; theirs is ignored."""
        if self.is_alone:
            return message
        payload = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        length = torch.tensor(len(payload))
        dist.broadcast(length, src=source)
        is_source = self.rank == source
        received = payload if is_source else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(received, src=source)
        told: T = json.loads(bytes(received.tolist()))
        return told

    def share(self, tensor: Tensor) -> None:
        """Give every process the numbers that the first one has in this tensor, in place."""
        if self.is_alone or not tensor.numel():
            return
        own = tensor.detach().to("cpu", copy=not self.is_first).contiguous()
        dist.broadcast(_as_bytes(own), src=0)
        if not self.is_first:
            tensor.detach().copy_(own)

    def share_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first process, on the CPU; those of the others are ignored."""
        described: dict[str, Any] = self.tell(
            {
                name: [str(t.dtype).removeprefix("torch."), list(t.shape)]
                for name, t in tensors.items()
            }
        )
        if not self.is_first:
            tensors = {
                name: torch.empty(shape, dtype=getattr(torch, dtype))
                for name, (dtype, shape) in described.items()
            }
        for tensor in tensors.values():
            self.share(tensor)
        return tensors

    def gather_rows(self, tree: T) -> T | None:
        """A tree of tensors with the rows of all processes, on the CPU of the first; else None."""
        if self.is_alone:
            return tree
        leaves = tensors_of(tree)
        counts = [int(n) for (n,) in self.gathered([len(leaves[0]) if leaves else 0])]
        if not self.is_first:
            for leaf in leaves:
                if leaf.numel():
                    dist.send(_as_bytes(leaf.detach().cpu().contiguous()), dst=0)
            return None

        def joined(leaf: Tensor) -> Tensor:
            """The rows of this process, then those of the others."""
            parts = [leaf.detach().cpu()]
            for rank, count in enumerate(counts[1:], start=1):
                parts.append(torch.empty(count, *leaf.shape[1:], dtype=leaf.dtype))
                if parts[-1].numel():
                    dist.recv(_as_bytes(parts[-1]), src=rank)
            return torch.cat(parts)

        whole: T = map_state(tree, joined)
        return whole

    def own_rows(self, tree: Any) -> Any:
        """This process' rows of a tree that has the rows of all."""
        if self.is_alone:
            return tree
        return map_state(tree, lambda leaf: leaf[self.rows(len(leaf))].clone())


ALONE = Ranks()


def _as_bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes, which every dtype can be sent as."""
    return tensor.view(-1).view(torch.uint8)
