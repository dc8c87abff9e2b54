"""Which configuration is better: means over seeds, paired differences, and a verdict in words.

A configuration is `better` (or `worse`) than the first where its bits per byte differ with p < 0.05
over documents and with p < 0.05 over seeds; all else is `not shown`, so also what one seed finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ys_llm.evaluation.significance import Float64Array, pooled_deviation, pooled_t_p, sign_flip_p

SIGNIFICANT = 0.05
_EQUAL_TIMES = 0.1  # by which the seconds of two runs differ on a quiet machine at most


@dataclass(frozen=True)
class RunResult:
    """What a finished run has shown: `nats` of each part of the held-out text, and its costs.

    `documents` says to which document each part belongs; there are `bytes` of UTF-8 in all of them.
    `peak_bytes` are the memory of a training step, None where it is not known; what is generated is
    one text. `weights`, `tokenizer`, `held_out` and `training` are hashes of what was measured,
    with which tokens, and on which text.
    """

    weights: str
    tokenizer: str
    held_out: str
    training: str
    commit: str
    hardware: str
    parameters: int
    state_bytes: int
    flops_per_token: int
    steps: int
    tokens: int
    seconds: float
    peak_bytes: int | None
    generated_per_second: float
    names_again: float | None
    bytes: int
    documents: tuple[int, ...]
    nats: tuple[float, ...]

    @property
    def bits_per_byte(self) -> float:
        """Of the held-out text, each document read from its own start."""
        return math.fsum(self.nats) / math.log(2) / self.bytes

    @property
    def tokens_per_second(self) -> float:
        """Training speed, without evaluations and checkpoints."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class ContenderRun:
    """The run of one seed, and the command that trains it alone."""

    run: str
    seed: int
    command: str
    result: RunResult


@dataclass(frozen=True)
class Contender:
    """One configuration of a comparison, with its runs, one for each seed."""

    run: str
    layers: str
    learning_rate: float
    runs: tuple[ContenderRun, ...]

    @property
    def results(self) -> list[RunResult]:
        """What its runs have shown."""
        return [one.result for one in self.runs]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; no deviation for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Standing:
    """A configuration's row of the table: means over its seeds."""

    run: str
    layers: str
    learning_rate: float
    parameters: int
    state_bytes: int
    flops_per_token: int
    peak_memory: float | None
    tokens: float
    seconds: float
    tokens_per_second: Spread
    generated_per_second: Spread
    bits_per_byte: Spread
    names_again: Spread | None


@dataclass(frozen=True)
class Verdict:
    """A configuration against the first one.

    `difference` is in bits per byte, below 0 where it predicts better; `seed_deviation` is how far
    seeds scatter, over all configurations. A p-value over seeds needs two seeds of one of them.
    """

    run: str
    against: str
    verdict: Literal["better", "worse", "not shown"]
    difference: float
    p_over_documents: float
    documents: int
    p_over_seeds: float | None
    seeds: int
    seed_deviation: float | None


@dataclass(frozen=True)
class RunRow:
    """One run with all that is needed to reproduce it."""

    run: str
    configuration: str
    seed: int
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    generated_per_second: float
    peak_memory: int | None
    bits_per_byte: float
    names_again: float | None
    commit: str
    hardware: str
    command: str


@dataclass(frozen=True)
class TriedRate:
    """A learning rate that `--tune` tried with the first seed; None bits where it diverged."""

    run: str
    learning_rate: float
    bits_per_byte: float | None
    chosen: bool


@dataclass(frozen=True)
class Comparison:
    """All that a comparison has found; `conclusion` says it in sentences."""

    budget: str | None
    seeds: tuple[int, ...]
    configurations: tuple[Standing, ...]
    verdicts: tuple[Verdict, ...]
    conclusion: tuple[str, ...]
    runs: tuple[RunRow, ...]
    rates: tuple[TriedRate, ...] = ()


def compare(
    contenders: Sequence[Contender],
    *,
    budget: str | None,
    more_seeds: str,
    notes: Sequence[str] = (),
    rates: Sequence[TriedRate] = (),
) -> Comparison:
    """All that the runs have shown; `more_seeds` is the command that trains more of them.

    `notes` are further sentences: which configuration could not be trained, which rate was found;
    `rates` are all that were tried.
    """
    standings, found = [_standing(one) for one in contenders], verdicts(contenders)
    rows = [_run_row(contender, one) for contender in contenders for one in contender.runs]
    said = [*conclusion(standings, found, more_seeds=more_seeds), *notes]
    if budget and budget.startswith("seconds"):
        said += _unequal_times(rows)
    return Comparison(
        budget,
        tuple(one.seed for one in contenders[0].runs),
        tuple(standings),
        tuple(found),
        tuple(said),
        tuple(rows),
        tuple(rates),
    )


def _unequal_times(rows: Sequence[RunRow]) -> Iterator[str]:
    """A note where the steps that were planned for the seconds have taken others."""
    shortest, longest = (choose(rows, key=lambda row: row.seconds) for choose in (min, max))
    if longest.seconds > shortest.seconds * (1 + _EQUAL_TIMES):
        yield (
            f"The steps that were planned took {longest.seconds:,.1f} s in {longest.run} and "
            f"{shortest.seconds:,.1f} s in {shortest.run}. Other work on the machine does that; it "
            f"changes the tokens/s above, and no loss."
        )


def _run_row(contender: Contender, one: ContenderRun) -> RunRow:
    result = one.result
    return RunRow(
        one.run,
        contender.run,
        one.seed,
        result.steps,
        result.tokens,
        result.seconds,
        result.tokens_per_second,
        result.generated_per_second,
        result.peak_bytes,
        result.bits_per_byte,
        result.names_again,
        result.commit,
        result.hardware,
        one.command,
    )


def _standing(contender: Contender) -> Standing:
    """The means of a configuration."""
    results = contender.results
    names = [result.names_again for result in results if result.names_again is not None]
    peaks = [result.peak_bytes for result in results if result.peak_bytes is not None]
    return Standing(
        contender.run,
        contender.layers,
        contender.learning_rate,
        results[0].parameters,
        results[0].state_bytes,
        results[0].flops_per_token,
        float(np.mean(peaks)) if peaks else None,
        float(np.mean([result.tokens for result in results])),
        float(np.mean([result.seconds for result in results])),
        _spread([result.tokens_per_second for result in results]),
        _spread([result.generated_per_second for result in results]),
        _spread([result.bits_per_byte for result in results]),
        _spread(names) if names else None,
    )


def _spread(values: Sequence[float]) -> Spread:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation)


def verdicts(contenders: Sequence[Contender]) -> list[Verdict]:
    """Every configuration against the first; then the best against others that are better, too."""
    found = [_between(contenders, index, 0) for index in range(1, len(contenders))]
    better = [index for index, one in enumerate(found, 1) if one.verdict == "better"]
    best = min(better, key=lambda index: found[index - 1].difference, default=0)
    return found + [_between(contenders, best, other) for other in better if other != best]


def _between(contenders: Sequence[Contender], index: int, against: int) -> Verdict:
    """One configuration against another; seeds scatter as those of all of them do."""
    one, other = contenders[index], contenders[against]
    scores = [[result.bits_per_byte for result in contender.results] for contender in contenders]
    deviation, freedom = pooled_deviation(scores)
    differences = _differences(one, other)
    total = math.fsum(differences)
    p, p_over_seeds = sign_flip_p(differences), pooled_t_p(scores, index, against)
    return Verdict(
        one.run,
        other.run,
        _verdict(total, p, p_over_seeds),
        total / math.log(2) / one.results[0].bytes,
        p,
        len(differences),
        p_over_seeds,
        len(one.results),
        deviation if freedom else None,
    )


def _verdict(
    difference: float, p: float, p_over_seeds: float | None
) -> Literal["better", "worse", "not shown"]:
    if p_over_seeds is None or max(p, p_over_seeds) >= SIGNIFICANT:
        return "not shown"
    return "better" if difference < 0 else "worse"


def _differences(one: Contender, other: Contender) -> Float64Array:
    """Nats of each part of the text, mean over seeds, minus those of the other configuration.

    Parts are cut by tokens: where the tokenizers are not the same, documents are compared whole.
    """
    alike = len({result.tokenizer for result in (*one.results, *other.results)}) == 1
    left, right = (
        np.mean([_nats(result, whole=not alike) for result in contender.results], axis=0)
        for contender in (one, other)
    )
    difference: Float64Array = left - right
    return difference


def _nats(result: RunResult, *, whole: bool) -> Float64Array:
    nats = np.array(result.nats)
    return np.bincount(result.documents, nats).astype(np.float64) if whole else nats


def conclusion(
    standings: Sequence[Standing], found: Sequence[Verdict], *, more_seeds: str
) -> Iterator[str]:
    """Which one to use, and why, in sentences; `more_seeds` is a command."""
    rows = {row.run: row for row in standings}
    first, others = standings[0], found[: len(standings) - 1]
    better = [one for one in others if one.verdict == "better"]
    if better:
        best = min(better, key=lambda one: one.difference)
        yield f"Use {best.run}: {_evidence(best, first)}."
        yield _costs(rows[best.run], first)
    elif all(one.verdict == "worse" for one in others):
        yield f"Use {first.run}: every other configuration was shown to be worse."
    else:
        yield f"Nothing was shown to be better than {first.run}."
        yield _cheapest([first, *(rows[one.run] for one in others if one.verdict == "not shown")])
    for one in found[len(others) :]:
        if one.verdict == "better":
            evidence = _evidence(one, rows[one.against])
            yield f"{one.run} is better than {one.against}, too: {evidence}."
        else:
            yield f"Between {one.run} and {one.against} nothing was shown: {_doubt(one)}."
    for one in others:
        if one.verdict == "worse":
            yield f"{one.run} is worse: {_evidence(one, first)}."
        elif one.verdict == "not shown":
            yield f"{one.run} was shown to be neither better nor worse: {_doubt(one)}."
    if any(one.verdict == "not shown" for one in found):
        yield f"More seeds tell more, and what is trained is kept: {more_seeds}"


def _cheapest(equal: Sequence[Standing]) -> str:
    """What may decide between those that nothing was shown to tell apart."""
    trains = max(equal, key=lambda row: row.tokens_per_second.mean)
    writes = max(equal, key=lambda row: row.generated_per_second.mean)
    least = min(equal, key=lambda row: row.state_bytes)
    return (
        f"Costs may decide: of {', '.join(row.run for row in equal)}, {trains.run} trains fastest, "
        f"{writes.run} generates fastest, and {least.run} has the smallest state."
    )


def _evidence(one: Verdict, first: Standing) -> str:
    share = abs(one.difference) / first.bits_per_byte.mean
    sign = "fewer" if one.difference < 0 else "more"
    return (
        f"it needs {abs(one.difference):.4f} bits per byte ({share:.1%}) {sign} than "
        f"{one.against}, {_p(one.p_over_documents)} over {one.documents} parts of the held-out "
        f"text and {_p(one.p_over_seeds)} over {one.seeds} seeds"
    )


def _doubt(one: Verdict) -> str:
    ahead = "ahead of" if one.difference < 0 else "behind"
    by = f"it is {abs(one.difference):.4f} bits per byte {ahead} {one.against}"
    documents = f"{_p(one.p_over_documents)} over {one.documents} parts of the held-out text"
    if one.p_over_seeds is None:
        return f"{by} ({documents}), and one seed cannot tell whether another would turn it"
    deviation = f"seeds scatter by {one.seed_deviation:.4f}"
    return f"{by} ({documents}, {_p(one.p_over_seeds)} over {one.seeds} seeds; {deviation})"


def _p(value: float | None) -> str:
    assert value is not None, "without a p-value there is no evidence"
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def _costs(row: Standing, first: Standing) -> str:
    speed = row.tokens_per_second.mean / first.tokens_per_second.mean
    generation = row.generated_per_second.mean / first.generated_per_second.mean
    names = ""
    if row.names_again and first.names_again:
        names = (
            f"; a name that comes again costs {row.names_again.mean:.2f} nats "
            f"(there {first.names_again.mean:.2f})"
        )
    return (
        f"It trains {speed:.2f} times as fast as {first.run} and generates {generation:.2f} times "
        f"as fast, and its state takes {row.state_bytes:,} bytes (there {first.state_bytes:,})"
        f"{names}."
    )
