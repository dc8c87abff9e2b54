"""A prompt is read once, in chunks; then one token at a time with the carried state.

Memory is constant in the length of the prompt, and the time per token in the length of all that
came before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import StreamDecoder, Tokenizer
from ys_llm.errors import UserError
from ys_llm.inference.decoder import Text, decoder_of
from ys_llm.model.language_model import Model

Numbers = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]

PENALTY_WINDOW = 64  # tokens that the repetition penalty looks back on
_SCORED_TOKENS = 128  # of a chunk whose tokens are scored: 32 MB of logits at 65,536 words
_LONGEST_PIECE = 1 << 18  # characters without a space that are held back for a border
_COLDEST = 1e-9  # a temperature below this is 0: float64 keeps nothing of the other tokens
_FEW_TOKENS = 64  # that a trained model mostly chooses between
_GREATEST_LOGIT = 1e300  # what a penalty may make of one; two of them can still be subtracted


@dataclass(frozen=True)
class Candidate:
    """A token the model could have chosen, and its log-probability (nats)."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Step:
    """One token that was read or made.

    `logprob` (nats) and `candidates` (best first) are the model's own: the log-softmax of its
    logits, before penalty, temperature and filters.
    """

    id: int
    logprob: float
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Prefilled:
    """A model that has read something: what it expects next, and all it needs to go on."""

    logits_V: Tensor
    state: Any
    recent: tuple[int, ...]  # the last PENALTY_WINDOW ids
    n_tokens: int


def prompt_ids(tokenizer: Tokenizer, pieces: Iterable[str], *, plain: bool) -> Iterator[int]:
    """`<end> prompt <start>`, or `<end> prompt` where a plain text is to be continued.

    `pieces` are the prompt in order, cut anywhere; see `encode_pieces`.
    """
    ids = chain([tokenizer.end_id], encode_pieces(tokenizer, pieces))
    return ids if plain else chain(ids, [tokenizer.start_id])


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[int]:
    """Ids of a text that comes in pieces, equal to `tokenizer.encode` of the whole text.

    Text is encoded up to its last border between a non-space and a space or line break, which
    no token of any kind crosses. A stretch of over 262,144 characters without one is cut where
    it stands, and only there can the ids differ from those of the whole text.
    """
    held = ""
    for piece in pieces:
        held += piece
        cut = len(held) if len(held) > _LONGEST_PIECE else _last_border(held)
        if cut:
            yield from tokenizer.encode(held[:cut])
            held = held[cut:]
    if held:
        yield from tokenizer.encode(held)


def prefill(
    model: Model,
    ids: Iterable[int],
    state: Any = None,
    *,
    chunk_tokens: int = 1024,
    observe: Callable[[Step], None] | None = None,
    n_candidates: int = 0,
) -> Prefilled:
    """Read `ids` (any number, at least one) after `state`, `chunk_tokens` at a time.

    `observe` is called with each token but the first, in order, and what the model gave it.
    Only then are logits made for any token but the last.
    """
    source = iter(ids)
    recent: deque[int] = deque(maxlen=PENALTY_WINDOW)
    logits_V: Tensor | None = None
    n_tokens = 0
    if observe is not None:  # logits of all tokens of a chunk are made
        chunk_tokens = min(chunk_tokens, _SCORED_TOKENS)
    while chunk := list(islice(source, chunk_tokens)):
        with _inference(model):
            kind: Literal["all", "last"] = "last" if observe is None else "all"
            logits_BTV, state = model(_row(model, chunk), state, logits=kind)
            if observe is not None:
                for step in _score(logits_BTV[0], chunk, logits_V, n_candidates):
                    observe(step)
            logits_V = logits_BTV[0, -1]
        recent.extend(chunk)
        n_tokens += len(chunk)
    if logits_V is None:
        raise ValueError("prefill needs at least one id; a text without words still has its <end>")
    return Prefilled(logits_V, state, tuple(recent), n_tokens)


def generate(
    model: Model,
    prefilled: Prefilled,
    *,
    sampling: GenerateConfig,
    end_id: int,
    n_candidates: int = 0,
) -> Iterator[Step]:
    """The continuation, token by token: `sampling.max_tokens` of them, or up to `<end>`.

    `<end>` itself is the last step where the model chose it. The same seed gives the same ids;
    temperature 0 always takes the most probable token. No prefix is ever read again.
    """
    answer = _Answer(prefilled, sampling, end_id, n_candidates)
    logits_V, advance = prefilled.logits_V, _advancer(model, prefilled.state)
    while not answer.finished:
        if answer.made:
            logits_V = advance(answer.recent[-1])
        yield answer.draw(logits_V)


def generate_many(
    model: Model,
    prefilled: Iterable[Prefilled],
    *,
    sampling: GenerateConfig,
    end_id: int,
    at_once: int = 16,
) -> Iterator[tuple[int, list[Step]]]:
    """The continuations as `generate` gives each of them, made `at_once` (up to 64) side by side.

    Yields (number of the text, its steps) as each ends; then the next is taken from `prefilled`.
    Weights are read once for all texts, so that a token costs a fraction of what it does alone.
    Where there is no decoder for the model, text comes after text.
    """
    decoder, waiting = decoder_of(model), enumerate(prefilled)
    if decoder is None:
        for number, one in waiting:
            yield number, list(generate(model, one, sampling=sampling, end_id=end_id))
        return
    active: list[_Active] = []
    while True:
        for number, one in islice(waiting, at_once - len(active)):
            answer = _Answer(one, sampling, end_id, 0)
            steps = [] if answer.finished else [answer.draw(one.logits_V)]
            active.append(_Active(number, answer, decoder.text(one.state), steps))
        if not active:
            return
        yield from ((row.number, row.steps) for row in active if row.answer.finished)
        active = [row for row in active if not row.answer.finished]
        if active:
            ids = [row.steps[-1].id for row in active]
            logits_NV = decoder.step([row.text for row in active], ids)
            for row, logits_V in zip(active, logits_NV, strict=True):
                row.steps.append(row.answer.draw(logits_V))


class _Active(NamedTuple):
    """One of several texts that are being continued."""

    number: int
    answer: _Answer
    text: Text
    steps: list[Step]


class _Answer:
    """One continuation while it is made: its generator, what it said last, whether it has ended."""

    def __init__(
        self, prefilled: Prefilled, sampling: GenerateConfig, end_id: int, n_candidates: int
    ) -> None:
        self._sampling, self._end_id, self._n_candidates = sampling, end_id, n_candidates
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        # <end> opens every prompt: to penalise it would keep every answer from ending.
        seen = (id for id in prefilled.recent if id != end_id)
        self.recent = deque(seen, maxlen=PENALTY_WINDOW)
        self.made, self.finished = 0, sampling.max_tokens == 0

    def draw(self, logits_V: Tensor) -> Step:
        """The next token, given what the model expects."""
        probabilities_V = distribution(logits_V, self._sampling, self.recent)
        chosen = int(torch.multinomial(probabilities_V, 1, generator=self._generator))
        self.made += 1
        self.recent.append(chosen)
        self.finished = chosen == self._end_id or self.made == self._sampling.max_tokens
        return _step(chosen, _log_softmax(logits_V), self._n_candidates)


def distribution(logits_V: Tensor, sampling: GenerateConfig, recent: Iterable[int] = ()) -> Tensor:
    """The probabilities a token is drawn from (V, float64, CPU), in this order:

    repetition penalty r: a logit z of a token in `recent` becomes z / r if z > 0, else z r;
    temperature: softmax(z / temperature), or all on the largest z at 0;
    top_k: the k most probable stay (0: all);
    top_p: the fewest most probable stay whose sum reaches top_p;
    min_p: those stay that have at least min_p times the probability of the best.
    After each filter what stays is scaled to sum 1. Of equals the smaller id comes first.
    """
    logits = logits_V.detach().to("cpu", torch.float64).numpy()  # its calls cost a third of torch's
    if not (math.isfinite(logits.min()) and math.isfinite(logits.max())):
        raise UserError(
            "the model gives no numbers but NaN or infinity: its weights are damaged, or its "
            "training went wrong",
            "Train anew: ys train clean",
        )
    logits = _penalised(logits, sampling, recent)
    best = logits.argmax()  # the first of equals
    if sampling.temperature < _COLDEST:
        return torch.zeros(len(logits), dtype=torch.float64).index_fill_(0, torch.tensor(best), 1)
    with np.errstate(over="ignore"):  # exp(-infinity) is the 0 that it should be
        probabilities = np.exp((logits - logits[best]) / sampling.temperature)
    probabilities /= probabilities.sum()
    may_stay = _front(logits, probabilities, sampling)
    if may_stay is None:
        return torch.from_numpy(probabilities)
    ids = np.flatnonzero(may_stay)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    kept = probabilities[ids]
    if 0 < sampling.top_k < len(logits):
        ids, kept = ids[: sampling.top_k], kept[: sampling.top_k]
        kept = kept / kept.sum()
    if sampling.top_p < 1:
        kept = _scaled(kept, kept.cumsum() - kept < sampling.top_p)
    if sampling.min_p:
        kept = _scaled(kept, kept >= sampling.min_p * kept[0])
    distribution = np.zeros_like(probabilities)
    distribution[ids] = kept
    return torch.from_numpy(distribution)


def _front(logits: Numbers, probabilities: Numbers, sampling: GenerateConfig) -> Marks | None:
    """Marks of all tokens that the filters may leave, and of every likelier one; None: all stay.

    To sort a whole vocabulary takes as long as a small model does for a token.
    """
    marks: Marks | None = None
    if 0 < sampling.top_k < len(logits):
        marks = logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k]
    elif sampling.top_p < 1:
        marks = _reaching(sampling.top_p, probabilities)
    elif sampling.min_p:
        marks = probabilities >= sampling.min_p * probabilities.max()
    return marks


def _reaching(top_p: float, probabilities: Numbers) -> Marks:
    """Marks of the most probable tokens: some whose sum is above top_p, mostly few.

    Tokens that are each below (1 - top_p) / 2V sum up to less than (1 - top_p) / 2.
    """
    few: Marks = probabilities >= (1 - top_p) / _FEW_TOKENS
    more: Marks = probabilities >= (1 - top_p) / (2 * len(probabilities))
    return few if (probabilities * few).sum() > (1 + top_p) / 2 else more


def complete(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | Iterable[str],
    *,
    sampling: GenerateConfig,
    plain: bool,
) -> Iterator[str]:
    """The answer to a prompt as text, piece by piece; the pieces joined are the whole answer."""
    pieces = [prompt] if isinstance(prompt, str) else prompt
    prefilled = prefill(model, prompt_ids(tokenizer, pieces, plain=plain))
    decoder = StreamDecoder(tokenizer)
    for step in generate(model, prefilled, sampling=sampling, end_id=tokenizer.end_id):
        yield decoder.push(step.id)
    yield decoder.flush()


@contextmanager
def _inference(model: Model) -> Iterator[None]:
    """No gradients and no dropout; a model in training is back in training afterwards."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def _row(model: Model, ids: Sequence[int]) -> Tensor:
    return torch.tensor([ids], dtype=torch.int64, device=next(model.parameters()).device)


def _advancer(model: Model, state: Any) -> Callable[[int], Tensor]:
    """A function that reads one more token after `state` and returns the logits (V) after it."""
    decoder = decoder_of(model)
    if decoder is None:
        return _TorchAdvance(model, state)
    text = decoder.text(state)
    return lambda id: decoder.step([text], [id])[0]


class _TorchAdvance:
    def __init__(self, model: Model, state: Any) -> None:
        self._model, self._state = model, state

    def __call__(self, id: int) -> Tensor:
        with _inference(self._model):
            logits_BTV, self._state = self._model(_row(self._model, [id]), self._state)
        return cast(Tensor, logits_BTV[0, -1])


def _score(
    logits_TV: Tensor, ids: Sequence[int], before_V: Tensor | None, n_candidates: int
) -> Iterator[Step]:
    """The steps of one chunk; `before_V` are the logits after the chunk before it, if any."""
    if before_V is not None:
        yield _step(ids[0], _log_softmax(before_V), n_candidates)
    for id, logprobs_V in zip(ids[1:], _log_softmax(logits_TV[:-1]), strict=True):
        yield _step(id, logprobs_V, n_candidates)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.detach().to("cpu", torch.float32), dim=-1)


def _step(id: int, logprobs_V: Tensor, n_candidates: int) -> Step:
    candidates: tuple[Candidate, ...] = ()
    if n_candidates:
        best, ids = logprobs_V.topk(min(n_candidates, len(logprobs_V)))
        candidates = tuple(map(Candidate, ids.tolist(), best.tolist()))
    return Step(id, float(logprobs_V[id]), candidates)


def _penalised(logits_V: Numbers, sampling: GenerateConfig, recent: Iterable[int]) -> Numbers:
    ids = sorted(set(recent))
    if sampling.repetition_penalty == 1 or not ids:
        return logits_V
    penalised_V = logits_V.copy()
    seen, r = logits_V[ids], sampling.repetition_penalty
    with np.errstate(over="ignore"):  # what becomes infinite is brought back
        penalised_V[ids] = np.where(seen > 0, seen / r, seen * r)
    return penalised_V.clip(-_GREATEST_LOGIT, _GREATEST_LOGIT)


def _scaled(probabilities: Numbers, keep: Marks) -> Numbers:
    kept = probabilities * keep
    scaled: Numbers = kept / kept.sum()
    return scaled


def _last_border(text: str) -> int:
    """Position of the last space or line break that follows a character which is neither."""
    for i in range(len(text) - 1, 0, -1):
        if text[i] in " \n" and not text[i - 1].isspace():
            return i
    return 0
