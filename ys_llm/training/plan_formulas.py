"""Closed forms of a plan: transfers, stragglers, failures. Seconds, bytes, bytes a second."""

import math
from dataclasses import dataclass
from statistics import NormalDist


def all_reduce_seconds(size: float, ranks: int, rate: float, latency: float = 0.0) -> float:
    """Sum a tensor over all ranks: 2 (N - 1) / N size / rate + 2 log2(N) latency.

    Every rank passes on the tensor but its own share twice, which no algorithm can avoid (Patarasuk
    and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002); messages go along trees, as NCCL's do.
    """
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * size / rate + 2 * math.ceil(math.log2(ranks)) * latency


def expected_maximum(count: int) -> float:
    """Expected greatest of `count` standard normal numbers, within 2 % (Blom 1958, p. 71).

    Phi^-1((N - a) / (N - 2 a + 1)), a = 0.375
    """
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


@dataclass(frozen=True)
class Failures:
    """What goes wrong, in seconds: between two failures, for a checkpoint, until it goes on."""

    mtbf: float
    checkpoint: float
    restart: float

    @property
    def interval(self) -> float:
        """Seconds of work between checkpoints that lose least (Daly 2006, equation 37).

        sqrt(2 C M) (1 + sqrt(C / 2 M) / 3 + C / 2 M / 9) - C, and M where C >= 2 M. The root is
        Young's (1974, doi 10.1145/361147.361115): saving costs as much as failures lose.
        """
        share = self.checkpoint / (2 * self.mtbf)
        if share >= 1:
            return self.mtbf
        young = math.sqrt(2 * self.checkpoint * self.mtbf)
        # A checkpoint that costs nothing would be taken all the time.
        return max(young * (1 + math.sqrt(share) / 3 + share / 9) - self.checkpoint, 1e-9)

    def wall_seconds(self, work: float, interval: float | None = None) -> float:
        """Expected time of the work: M e^(R / M) (e^((tau + C) / M) - 1) work / tau.

        Daly 2006 (doi 10.1016/j.future.2004.11.016), equation 20: failures are independent, and
        come while saving and restarting, too. Infinite where hardly a step would be done.
        """
        tau = self.interval if interval is None else interval
        exponent = (tau + self.checkpoint) / self.mtbf
        if exponent + self.restart / self.mtbf > 600:
            return math.inf
        once = self.mtbf * math.exp(self.restart / self.mtbf) * math.expm1(exponent)
        return once * work / tau
