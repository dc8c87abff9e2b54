"""Generation: the prompt is read once, in pieces; then each token takes one decode step.

Memory does not grow with the length of the prompt where the mixer's state does not, and neither
does the time per token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.chat import TOKEN_OF_ROLE, Role
from ys_llm.data.tokenizer import StreamDecoder, Tokenizer
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.copied import Copied, Copyable
from ys_llm.inference.decode_step import decode_rows
from ys_llm.inference.decoder import Decoder
from ys_llm.inference.prefix_cache import (
    PIECE_SIZES,
    ROOT,
    PrefixCache,
    SavedPrefix,
    is_checkpoint,
    keys_of,
    pieces_of,
)
from ys_llm.inference.sampling import (
    Sampler,
    ScoredToken,
    log_softmax,
    sample_rows,
    score_token,
)
from ys_llm.model.copy_tier import Reading
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State, detach, map_state

_SPEAKERS: tuple[Role, Role] = ("user", "assistant")
_LOOKED_UP = 256  # pieces of a prompt that are looked up in the cache at once
_MAX_UNSPLIT_CHARS = 1 << 18  # longest text that is buffered in search of a border


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has been read: the logits after it, the state, and its last ids."""

    logits_V: Tensor
    state: State
    recent: tuple[int, ...]  # the last PENALTY_WINDOW ids
    n_tokens: int
    n_cached: int = 0  # of these tokens: their state was saved, and they were not read again


@dataclass
class ActiveSequence:
    """One of the answers of a batch while it is generated; `number` is that of its prompt."""

    number: int
    sampler: Sampler
    tokens: list[ScoredToken]


def prompt_ids(
    tokenizer: Tokenizer, pieces: Iterable[str], *, raw: bool, chats: bool = False
) -> Iterator[int]:
    """`<end> prompt <start>`, to be answered; with `raw` `<end> prompt`, to be continued.

    `chats`: the prompt is a turn of a conversation, `<end> <user> prompt <assistant>`. `pieces` are
    the prompt in order, split anywhere; see `encode_pieces`.
    """
    ids = encode_pieces(tokenizer, pieces)
    return chain([tokenizer.end_id], ids if raw else as_prompt(tokenizer, ids, chats=chats))


def as_prompt(tokenizer: Tokenizer, ids: Iterable[int], *, chats: bool) -> Iterator[int]:
    """A prompt with the control tokens around it, after which the answer comes."""
    if not chats:
        return chain(ids, [tokenizer.start_id])
    user, assistant = (tokenizer.controls[TOKEN_OF_ROLE[role]] for role in _SPEAKERS)
    return chain([user], ids, [assistant])


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[int]:
    """Ids of a text that comes in pieces, equal to `tokenizer.encode` of the text in one piece.

    Text is encoded up to its last border between a non-space and a space or line break, which
    no token of any kind crosses. A run of more than 262,144 characters without such a border is
    split where it ends, and only there can the ids differ.
    """
    pending = ""
    for piece in pieces:
        pending += piece
        end = len(pending) if len(pending) > _MAX_UNSPLIT_CHARS else _last_border(pending)
        if end:
            yield from tokenizer.encode(pending[:end])
            pending = pending[end:]
    if pending:
        yield from tokenizer.encode(pending)


def _last_border(text: str) -> int:
    """Position of the last space or line break that follows a character which is neither."""
    for i in range(len(text) - 1, 0, -1):
        if text[i] in " \n" and not text[i - 1].isspace():
            return i
    return 0


def prefill(
    model: Model,
    ids: Iterable[int],
    state: State | None = None,
    *,
    piece_sizes: Sequence[int] = PIECE_SIZES,
    observe: Callable[[ScoredToken], None] | None = None,
    n_candidates: int = 0,
) -> Prefilled:
    """Read `ids` (at least one) after `state`, piece by piece (`pieces_of`).

    `observe` is called with every token but the first, in order, each scored by what came before.
    """
    reader = _PromptReader(model, state, observe, n_candidates)
    for piece in pieces_of(ids, piece_sizes):
        reader.read(piece)
    return reader.prefilled()


def prefill_cached(model: Model, ids: Iterable[int], cache: PrefixCache) -> Prefilled:
    """Read a prompt from the longest of its beginnings in `cache`, and save what is read there.

    Logits and state are the same bits as those of `prefill(model, ids)`.
    """
    return drained(_cached_slices(model, ids, cache))


def drained(slices: Generator[None, None, Prefilled]) -> Prefilled:
    """What was read, without a pause between two slices."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            read: Prefilled = end.value
            return read


def prefill_slices(
    model: Model,
    ids: Iterable[int],
    cache: PrefixCache | None = None,
    *,
    state: State | None = None,
    observe: Callable[[ScoredToken], None] | None = None,
    n_candidates: int = 0,
) -> Generator[None, None, Prefilled]:
    """`prefill`, or `prefill_cached`, that yields between two pieces and returns what it has read.

    Others can be served between two pieces; a cache serves neither a `state` nor `observe`.
    """
    if cache is not None:
        return (yield from _cached_slices(model, ids, cache))
    reader = _PromptReader(model, state, observe, n_candidates)
    for number, piece in enumerate(pieces_of(ids)):
        if number:
            yield
        reader.read(piece)
    return reader.prefilled()


def _cached_slices(
    model: Model, ids: Iterable[int], cache: PrefixCache
) -> Generator[None, None, Prefilled]:
    reader, pieces, key = _PromptReader(model), pieces_of(ids), ROOT
    group = list(islice(pieces, _LOOKED_UP))
    while group:
        following = list(islice(pieces, _LOOKED_UP))
        keys = keys_of(group, key)
        n_known, saved = cache.longest(keys, whole=not following)
        if saved is not None:
            reader.skip(group[:n_known], saved)
        for number in range(n_known, len(group)):
            if reader.n_read:
                yield
            reader.read(group[number])
            whole = not following and number == len(group) - 1
            if whole or is_checkpoint(reader.n_tokens):
                cache.add(keys[number], reader.saved(whole=whole))
        group, key = following, keys[-1]
    return reader.prefilled()


class _PromptReader:
    """A prompt while it is read."""

    def __init__(
        self,
        model: Model,
        state: State | None = None,
        observe: Callable[[ScoredToken], None] | None = None,
        n_candidates: int = 0,
    ) -> None:
        self.n_tokens, self.n_read, self.state = 0, 0, state  # n_read: pieces
        self.logits_V: Tensor | None = None
        self._model, self._observe, self._n_candidates = model, observe, n_candidates
        self._recent, self._n_cached = deque[int](maxlen=PENALTY_WINDOW), 0
        self._copyable: Copyable | None = None  # by what follows the last token

    def read(self, piece: Sequence[int]) -> None:
        """Read the next piece."""
        with inference_mode(self._model):
            row = _row(self._model, piece)
            if self._observe is None:
                logits_BTV, state = self._model(row, self.state, logits="last")
            else:
                logits_BTV, state, reading = self._model.read(row, self.state)
                scored = _scored(piece, logits_BTV[0], self.logits_V, self._n_candidates)
                for token in self._with_copied([*scored], reading, int(state["position_B"])):
                    self._observe(token)
        # In memory as a state from a file is, whose next piece must be rounded alike.
        self.state, self.logits_V = map_state(detach(state), Tensor.contiguous), logits_BTV[0, -1]
        self._pass(piece)
        self.n_read += 1

    def _with_copied(
        self, scored: list[ScoredToken], reading: Reading | None, n_read: int
    ) -> list[ScoredToken]:
        """The tokens of a piece, the first of which the last query of the piece before predicts."""
        tier = self._model.copy_tier
        if tier is None or reading is None:
            return scored
        before, now = self._copyable, Copyable(tier, reading, n_read)
        self._copyable = now
        predicted_by = [(now, query) for query in range(len(scored))]
        if before is not None:
            predicted_by.insert(0, (before, -1))
        return [
            replace(token, copied=copyable.of(query, token.id, token.logprob))
            for token, (copyable, query) in zip(scored, predicted_by, strict=False)
        ]

    def skip(self, pieces: Sequence[Sequence[int]], saved: SavedPrefix) -> None:
        """Take over what is saved of the next pieces."""
        self.state, self.logits_V = saved.state, saved.logits_V
        for piece in pieces:
            self._pass(piece)
            self._n_cached += len(piece)

    def saved(self, *, whole: bool) -> SavedPrefix:
        """What is read so far, to be saved; `whole`: it is all of the prompt."""
        assert self.state is not None
        return SavedPrefix(self.state, self.logits_V if whole else None)

    def prefilled(self) -> Prefilled:
        """What was read."""
        if self.logits_V is None or self.state is None:
            raise ValueError("prefill needs at least one id; an empty prompt begins with <end>")
        recent = tuple(self._recent)
        return Prefilled(self.logits_V, self.state, recent, self.n_tokens, self._n_cached)

    def _pass(self, piece: Sequence[int]) -> None:
        self._recent.extend(piece)
        self.n_tokens += len(piece)


def copied_from(
    model: Model, prompt: Sequence[int], answer: Sequence[int], before: State | None = None
) -> list[Copied]:
    """How much of each token of an answer was copied, and from where; empty: no copy tier.

    Both are read again after `before`: where the compiled decoder computed the answer, up to
    rounding.
    """
    if model.copy_tier is None or not answer:
        return []
    scored: list[ScoredToken] = []
    state = prefill(model, prompt[:-1], before).state if len(prompt) > 1 else before
    prefill(model, [prompt[-1], *answer], state, observe=scored.append)
    return [token.copied for token in scored if token.copied is not None]


def _row(model: Model, ids: Sequence[int]) -> Tensor:
    return torch.tensor([ids], dtype=torch.int64, device=next(model.parameters()).device)


def _scored(
    ids: Sequence[int], logits_TV: Tensor, before_V: Tensor | None, n_candidates: int
) -> Iterator[ScoredToken]:
    """The tokens of one piece; `before_V` are the logits after the piece before it, if any."""
    if before_V is not None:
        yield score_token(ids[0], log_softmax(before_V), n_candidates)
    for id, logprobs_V in zip(ids[1:], log_softmax(logits_TV[:-1]), strict=True):
        yield score_token(id, logprobs_V, n_candidates)


def generate(
    model: Model,
    prefilled: Prefilled,
    *,
    sampling: GenerateConfig,
    end_ids: Collection[int],
    n_candidates: int = 0,
    decoder: Decoder | None = None,
) -> Iterator[ScoredToken]:
    """The continuation, token by token: at most `sampling.max_tokens`, or up to one of `end_ids`.

    That is itself the last token where the model chose it. The same seed gives the same ids;
    temperature 0 is greedy. `decoder` is the model's compiled decoder (`decoder_of`); without one,
    torch computes the decode steps.
    """
    sampler = Sampler(sampling, end_ids=end_ids, recent=prefilled.recent, n_candidates=n_candidates)
    rows, logits_V = decode_rows(model, decoder), prefilled.logits_V
    rows.add([prefilled.state])
    while not sampler.finished:
        token = sampler.sample(logits_V)
        yield token
        if not sampler.finished:
            logits_V = rows.step([token.id])[0]


def generate_batch(
    model: Model,
    prefilled: Iterable[Prefilled],
    *,
    sampling: GenerateConfig,
    end_ids: Collection[int],
    max_batch: int = 16,
    decoder: Decoder | None = None,
) -> Iterator[tuple[int, list[ScoredToken]]]:
    """The continuations of many prompts, up to `max_batch` of them decoded together.

    Yields (number of the prompt, its tokens) as each ends; the next prompt then joins the batch.
    Weights are read once for all rows of a decode step, so that a token costs a fraction of what
    it costs alone. Each answer is sampled as `generate` samples it, with the same seed. With the
    compiled decoder both give the same tokens; without it the logits of a batch are equal up to
    rounding, which can change a token that was almost a tie.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, found {max_batch}")
    waiting, rows = enumerate(prefilled), decode_rows(model, decoder)
    active: list[ActiveSequence] = []
    while True:
        joining = list(islice(waiting, max_batch - len(active)))
        rows.add([one.state for _, one in joining])
        for number, one in joining:
            sampler = Sampler(sampling, end_ids=end_ids, recent=one.recent)
            tokens = [] if sampler.finished else [sampler.sample(one.logits_V)]
            active.append(ActiveSequence(number, sampler, tokens))
        if not active:
            return
        yield from ((row.number, row.tokens) for row in active if row.sampler.finished)
        remaining = [i for i, row in enumerate(active) if not row.sampler.finished]
        if len(remaining) < len(active):
            rows.keep(remaining)
            active = [active[i] for i in remaining]
        if active:
            logits_NV = rows.step([row.tokens[-1].id for row in active])
            drawn = sample_rows([row.sampler for row in active], logits_NV)
            for row, token in zip(active, drawn, strict=True):
                row.tokens.append(token)


def complete(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | Iterable[str],
    *,
    sampling: GenerateConfig,
    raw: bool,
    chats: bool = False,
) -> Iterator[str]:
    """The answer to a prompt as text, piece by piece, decoded by torch; see `prompt_ids`."""
    pieces = [prompt] if isinstance(prompt, str) else prompt
    prefilled = prefill(model, prompt_ids(tokenizer, pieces, raw=raw, chats=chats))
    decoder = StreamDecoder(tokenizer)
    for token in generate(model, prefilled, sampling=sampling, end_ids=[tokenizer.end_id]):
        yield decoder.push(token.id)
    yield decoder.flush()
