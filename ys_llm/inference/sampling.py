"""From logits to a token: penalty, temperature, filters, and a draw with a generator of its own.

`distribution` and `draw` are the readable form. `csrc/sampling.cpp` computes the same for all rows
of a batch in one call, where the library is compiled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.csrc import loader
from ys_llm.errors import UserError, command_line
from ys_llm.inference.compiled_sampling import NOT_FINITE, PENALTY_WINDOW, draw_rows
from ys_llm.inference.copied import Copied

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_DRAWN_AT_ONCE = 64  # uniform numbers
_MIN_TEMPERATURE = 1e-9  # below this, float64 rounds every other token's probability to 0
_TYPICAL_NUCLEUS = 64  # a trained model rarely has more plausible tokens than this
_MAX_LOGIT = 1e300  # bound on penalised logits; the difference of two such is still finite


@dataclass(frozen=True)
class Candidate:
    """A token the model could have chosen, and its log-probability (nats)."""

    id: int
    logprob: float


@dataclass(frozen=True)
class ScoredToken:
    """A token that was read or generated.

    `logprob` (nats) and `candidates` (best first) are the model's own: the log-softmax of its
    logits, before penalty, temperature and filters. `copied` is known of a token that was read, by
    a model with a copy tier.
    """

    id: int
    logprob: float
    candidates: tuple[Candidate, ...] = ()
    copied: Copied | None = None


class Sampler:
    """Draws the tokens of one answer, until one of `end_ids` or `sampling.max_tokens`.

    `recent` are the ids before the answer, for the repetition penalty. The same seed draws the
    same tokens from the same logits; without one, the generator is seeded by the system.
    """

    def __init__(
        self,
        sampling: GenerateConfig,
        *,
        end_ids: Collection[int],
        recent: Iterable[int] = (),
        n_candidates: int = 0,
    ) -> None:
        self.sampling, self.n_candidates = sampling, n_candidates
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        self.uniforms = uniform_numbers(generator)
        self._end_ids = frozenset(end_ids)
        # Every prompt begins with <end>: penalising it would keep every answer from ending.
        self.recent = deque((id for id in recent if id not in self._end_ids), PENALTY_WINDOW)
        self._n_sampled = 0
        self.finished = sampling.max_tokens == 0

    def sample(self, logits_V: Tensor) -> ScoredToken:
        """Draw the next token; UserError where a logit is NaN or infinite."""
        return sample_rows([self], logits_V[None])[0]

    def accept(self, id: int) -> None:
        """Note the token that was drawn."""
        self._n_sampled += 1
        self.recent.append(id)
        self.finished = id in self._end_ids or self._n_sampled == self.sampling.max_tokens


def sample_rows(samplers: Sequence[Sampler], logits_NV: Tensor) -> list[ScoredToken]:
    """The next token of each row, drawn by its sampler; all have the same options.

    Raises UserError where a logit is NaN or infinite.
    """
    sampling, uniforms = samplers[0].sampling, [next(sampler.uniforms) for sampler in samplers]
    draw_all = _draw_rows if (library := loader.load()) is None else partial(draw_rows, library)
    drawn = draw_all(logits_NV, sampling, [sampler.recent for sampler in samplers], uniforms)
    tokens = []
    for row, (sampler, (id, logprob)) in enumerate(zip(samplers, drawn, strict=True)):
        if id == NOT_FINITE:
            raise _diverged()
        sampler.accept(id)
        if sampler.n_candidates:
            tokens.append(score_token(id, log_softmax(logits_NV[row]), sampler.n_candidates))
        else:
            tokens.append(ScoredToken(id, logprob))
    return tokens


def _draw_rows(
    logits_NV: Tensor,
    sampling: GenerateConfig,
    recents: Sequence[Iterable[int]],
    uniforms: Sequence[float],
) -> list[tuple[int, float]]:
    """What `compiled_sampling.draw_rows` computes."""
    drawn = []
    for logits_V, recent, uniform in zip(logits_NV, recents, uniforms, strict=True):
        id = draw(distribution(logits_V, sampling, recent), uniform)
        drawn.append((id, float(log_softmax(logits_V)[id])))
    return drawn


def draw(probabilities_V: Tensor, uniform: float) -> int:
    """The first id whose cumulative probability exceeds `uniform`, which is in [0, 1)."""
    probabilities: Float64Array = probabilities_V.numpy()
    cumulative = probabilities.cumsum()
    id = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    return min(id, int(probabilities.nonzero()[0][-1]))  # the product may be rounded up to the sum


def uniform_numbers(generator: torch.Generator) -> Iterator[float]:
    """Numbers in [0, 1), one for each token: those of single calls of `torch.rand` in float64."""
    while True:
        yield from torch.rand(_DRAWN_AT_ONCE, dtype=torch.float64, generator=generator).tolist()


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities over the last dimension, float32 on the CPU."""
    return torch.log_softmax(logits.detach().to("cpu", torch.float32), dim=-1)


def score_token(id: int, logprobs_V: Tensor, n_candidates: int) -> ScoredToken:
    """The token with its log-probability and the `n_candidates` most probable tokens."""
    candidates: tuple[Candidate, ...] = ()
    if n_candidates:
        best, ids = logprobs_V.topk(min(n_candidates, len(logprobs_V)))
        candidates = tuple(map(Candidate, ids.tolist(), best.tolist()))
    return ScoredToken(id, float(logprobs_V[id]), candidates)


def distribution(logits_V: Tensor, sampling: GenerateConfig, recent: Iterable[int] = ()) -> Tensor:
    """The probabilities that a token is drawn from (V, float64, CPU), computed in this order:

    repetition penalty r: the logit z of a token in `recent` becomes z / r if z > 0, else z r;
    temperature: softmax(z / temperature); at 0 the largest z has probability 1;
    top_k: keep the k most probable tokens (0: all);
    top_p: keep the smallest set of most probable tokens whose sum reaches top_p;
    min_p: keep tokens with at least min_p times the probability of the most probable one.
    Each filter renormalises what it keeps. Ties are broken towards the smaller id.

    Raises UserError where a logit is NaN or infinite.
    """
    logits = logits_V.detach().to("cpu", torch.float64).numpy()  # quicker to call than torch
    if not (math.isfinite(logits.min()) and math.isfinite(logits.max())):
        raise _diverged()
    logits = _penalise(logits, sampling, recent)
    best = logits.argmax()  # the smallest id of equal ones
    if sampling.temperature < _MIN_TEMPERATURE:
        return torch.zeros(len(logits), dtype=torch.float64).index_fill_(0, torch.tensor(best), 1)
    with np.errstate(over="ignore"):  # an overflow to -infinity has exp 0, which is right
        probabilities = np.exp((logits - logits[best]) / sampling.temperature)
    probabilities /= probabilities.sum()
    survivors = _possible_survivors(logits, probabilities, sampling)
    if survivors is None:
        return torch.from_numpy(probabilities)
    ids = np.flatnonzero(survivors)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    filtered = np.zeros_like(probabilities)
    filtered[ids] = _filter_sorted(probabilities[ids], len(logits), sampling)
    return torch.from_numpy(filtered)


def _diverged() -> UserError:
    return UserError(
        "the model produced a NaN or infinite logit: its weights are damaged, or training diverged",
        "Train it again: " + command_line("train", "clean", run="NAME"),
    )


def _filter_sorted(kept: Float64Array, vocab_size: int, sampling: GenerateConfig) -> Float64Array:
    """top_k, top_p and min_p over the possible survivors' probabilities, in descending order."""
    if 0 < sampling.top_k < vocab_size:
        kept = _renormalise(kept, np.arange(len(kept)) < sampling.top_k)
    if sampling.top_p < 1:
        kept = _renormalise(kept, kept.cumsum() - kept < sampling.top_p)
    if sampling.min_p:
        kept = _renormalise(kept, kept >= sampling.min_p * kept[0])
    return kept


def _possible_survivors(
    logits: Float64Array, probabilities: Float64Array, sampling: GenerateConfig
) -> BoolArray | None:
    """A superset of the tokens that pass the filters, closed upwards; None: all pass.

    Sorting the whole vocabulary would take as long as one decode step of a small model.
    """
    if 0 < sampling.top_k < len(logits):
        kth: BoolArray = logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k]
        return kth
    if sampling.top_p < 1:
        return _nucleus_superset(sampling.top_p, probabilities)
    if sampling.min_p:
        likely: BoolArray = probabilities >= sampling.min_p * probabilities.max()
        return likely
    return None


def _nucleus_superset(top_p: float, probabilities: Float64Array) -> BoolArray:
    """The most probable tokens up to a threshold, chosen so that their sum is above top_p.

    Tokens below (1 - top_p) / 2V sum to less than (1 - top_p) / 2, so the second threshold always
    suffices; the first one keeps far fewer tokens and mostly suffices.
    """
    few: BoolArray = probabilities >= (1 - top_p) / _TYPICAL_NUCLEUS
    more: BoolArray = probabilities >= (1 - top_p) / (2 * len(probabilities))
    return few if (probabilities * few).sum() > (1 + top_p) / 2 else more


def _penalise(
    logits_V: Float64Array, sampling: GenerateConfig, recent: Iterable[int]
) -> Float64Array:
    ids = sorted(set(recent))
    if sampling.repetition_penalty == 1 or not ids:
        return logits_V
    penalised_V = logits_V.copy()
    seen, r = logits_V[ids], sampling.repetition_penalty
    with np.errstate(over="ignore"):  # infinite results are clipped below
        penalised_V[ids] = np.where(seen > 0, seen / r, seen * r)
    return penalised_V.clip(-_MAX_LOGIT, _MAX_LOGIT)


def _renormalise(probabilities: Float64Array, keep: BoolArray) -> Float64Array:
    kept = probabilities * keep
    scaled: Float64Array = kept / kept.sum()
    return scaled
