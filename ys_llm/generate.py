"""A prompt is read once, in chunks; then one token at a time with the carried state.

Memory is constant in the length of the prompt, and the time per token in the length of all that
came before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from ys_llm.config import GenerateConfig
from ys_llm.errors import UserError
from ys_llm.model import Model
from ys_llm.tokenizer import StreamDecoder, Tokenizer

PENALTY_WINDOW = 64  # tokens that the repetition penalty looks back on
_HEAD_TOKENS = 128  # logits made at a time when scoring: 32 MB at a vocabulary of 65,536
_LONGEST_PIECE = 1 << 18  # characters without a space that are held back for a border
_COLDEST = 1e-9  # a temperature below this is 0: float64 keeps nothing of the other tokens
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
    while chunk := list(islice(source, chunk_tokens)):
        with _inference(model):
            x_BTD, state = model.hidden(_row(model, chunk), state)
            if observe is not None:
                for step in _score(model, x_BTD, chunk, logits_V, n_candidates):
                    observe(step)
            logits_V = model.head(x_BTD[:, -1:])[0, 0]
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
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    # <end> opens every prompt: to penalise it would keep every answer from ending.
    recent = deque((id for id in prefilled.recent if id != end_id), maxlen=PENALTY_WINDOW)
    logits_V, state = prefilled.logits_V, prefilled.state
    for n_made in range(sampling.max_tokens):
        if n_made:
            logits_V, state = _advance(model, recent[-1], state)
        probabilities_V = distribution(logits_V, sampling, recent)
        chosen = int(torch.multinomial(probabilities_V, 1, generator=generator))
        yield _step(chosen, _log_softmax(logits_V), n_candidates)
        if chosen == end_id:
            return
        recent.append(chosen)


def distribution(logits_V: Tensor, sampling: GenerateConfig, recent: Iterable[int] = ()) -> Tensor:
    """The probabilities a token is drawn from (V, float64, CPU), in this order:

    repetition penalty r: a logit z of a token in `recent` becomes z / r if z > 0, else z r;
    temperature: softmax(z / temperature), or all on the largest z at 0;
    top_k: the k most probable stay (0: all);
    top_p: the fewest most probable stay whose sum reaches top_p;
    min_p: those stay that have at least min_p times the probability of the best.
    After each filter what stays is scaled to sum 1. Of equals the smaller id comes first.
    """
    logits = logits_V.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(logits).all()):
        raise UserError(
            "the model gives no numbers but NaN or infinity: its weights are damaged, or its "
            "training went wrong",
            "Train anew: ys train clean",
        )
    ordered, ids = torch.sort(_penalised(logits, sampling, recent), descending=True, stable=True)
    if sampling.temperature < _COLDEST:
        kept = torch.zeros_like(ordered)
        kept[0] = 1
    else:
        kept = torch.softmax((ordered - ordered[0]) / sampling.temperature, dim=0)
    if sampling.top_k:
        kept = _scaled(kept, torch.arange(len(kept)) < sampling.top_k)
    if sampling.top_p < 1:
        kept = _scaled(kept, kept.cumsum(0) - kept < sampling.top_p)
    kept = _scaled(kept, kept >= sampling.min_p * kept[0])
    return torch.zeros_like(kept).scatter_(0, ids, kept)


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


def _advance(model: Model, id: int, state: Any) -> tuple[Tensor, Any]:
    with _inference(model):
        logits_BTV, state = model(_row(model, [id]), state)
    return logits_BTV[0, -1], state


def _score(
    model: Model, x_BTD: Tensor, ids: Sequence[int], before_V: Tensor | None, n_candidates: int
) -> Iterator[Step]:
    """The steps of one chunk; `before_V` are the logits after the chunk before it, if any."""
    if before_V is not None:
        yield _step(ids[0], _log_softmax(before_V), n_candidates)
    for first in range(0, len(ids) - 1, _HEAD_TOKENS):
        part = slice(first, min(first + _HEAD_TOKENS, len(ids) - 1))
        logprobs_TV = _log_softmax(model.head(x_BTD[:, part])[0])
        for id, logprobs_V in zip(ids[part.start + 1 :], logprobs_TV, strict=False):
            yield _step(id, logprobs_V, n_candidates)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.detach().to("cpu", torch.float32), dim=-1)


def _step(id: int, logprobs_V: Tensor, n_candidates: int) -> Step:
    candidates: tuple[Candidate, ...] = ()
    if n_candidates:
        best, ids = logprobs_V.topk(min(n_candidates, len(logprobs_V)))
        candidates = tuple(map(Candidate, ids.tolist(), best.tolist()))
    return Step(id, float(logprobs_V[id]), candidates)


def _penalised(logits_V: Tensor, sampling: GenerateConfig, recent: Iterable[int]) -> Tensor:
    ids = sorted(set(recent))
    if sampling.repetition_penalty == 1 or not ids:
        return logits_V
    penalised_V = logits_V.clone()
    seen, r = logits_V[ids], sampling.repetition_penalty
    penalised_V[ids] = torch.where(seen > 0, seen / r, seen * r)
    return penalised_V.clamp(-_GREATEST_LOGIT, _GREATEST_LOGIT)


def _scaled(probabilities: Tensor, keep: Tensor) -> Tensor:
    kept = probabilities * keep
    return kept / kept.sum()


def _last_border(text: str) -> int:
    """Position of the last space or line break that follows a character which is neither."""
    for i in range(len(text) - 1, 0, -1):
        if text[i] in " \n" and not text[i - 1].isspace():
            return i
    return 0
