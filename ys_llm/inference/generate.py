"""Generation: the prompt is read once, in pieces; then each token takes one decode step.

A long piece is read by the model in one pass. A short one is read by the compiled decoder, token by
token like an answer: launching torch's operations takes as long as some hundred decode steps of a
small model, and the short pieces of several prompts can be read together.

Memory does not grow with the length of the prompt where the mixer's state does not, and neither
does the time per token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.chat import TOKEN_OF_ROLE, Role
from ys_llm.data.tokenizer import StreamDecoder, Tokenizer
from ys_llm.inference.copied import Copied
from ys_llm.inference.decode_step import decode_rows
from ys_llm.inference.decoder import Decoder, StepMemory
from ys_llm.inference.prefix_cache import (
    PIECE_SIZES,
    ROOT,
    PrefixCache,
    is_checkpoint,
    keys_of,
    pieces_of,
)
from ys_llm.inference.prompt_reader import PieceRead, PromptReader, ShortPiece
from ys_llm.inference.sampling import Sampler, ScoredToken, sample_rows
from ys_llm.model.language_model import Model
from ys_llm.model.state import State

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


# Reading a prompt: yields between two pieces, or a short piece to be sent back as it was read.
Slices = Generator[ShortPiece | None, PieceRead | None, Prefilled]


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
    observe: Callable[[ScoredToken], None] | None = None,
    n_candidates: int = 0,
    decoder: Decoder | None = None,
) -> Prefilled:
    """Read `ids` (at least one) after `state`, piece by piece (`pieces_of`).

    `observe` is called with every token but the first, in order, each scored by what came before.
    `decoder` is the model's compiled decoder, as for `generate`; the same prompt is to be read
    with or without it whenever the same bits are expected.
    """
    reader = PromptReader(model, state, observe, n_candidates)
    return drained(prefill_slices(reader, ids, decoder=decoder), decoder)


def prefill_cached(
    model: Model, ids: Iterable[int], cache: PrefixCache, *, decoder: Decoder | None = None
) -> Prefilled:
    """Read a prompt from the longest of its beginnings in `cache`, and save what is read there.

    Logits and state are the same bits as those of `prefill(model, ids, decoder=decoder)`.
    """
    return drained(prefill_slices(PromptReader(model), ids, cache, decoder=decoder), decoder)


def drained(slices: Slices, decoder: Decoder | None = None) -> Prefilled:
    """What was read, without a pause between two slices."""
    read: PieceRead | None = None
    while True:
        try:
            piece = slices.send(read)
        except StopIteration as end:
            prefilled: Prefilled = end.value
            return prefilled
        assert piece is None or decoder is not None
        read = None if piece is None or decoder is None else _decoded(decoder, piece)


def prefill_slices(
    reader: PromptReader,
    ids: Iterable[int],
    cache: PrefixCache | None = None,
    *,
    decoder: Decoder | None = None,
    piece_sizes: Sequence[int] = PIECE_SIZES,
) -> Slices:
    """Read a prompt with a new reader, as a generator that returns what it has read.

    It yields between two pieces, when others can be served, and what is to be read elsewhere. A
    `cache` serves whole prompts whose tokens are not scored, in pieces of the usual sizes.
    """
    pieces = pieces_of(ids, piece_sizes)
    if cache is not None:
        return _cached_slices(reader, pieces, cache, decoder)
    return _plain_slices(reader, pieces, decoder)


def _plain_slices(
    reader: PromptReader, pieces: Iterable[Sequence[int]], decoder: Decoder | None
) -> Slices:
    for piece in pieces:
        yield from _read(reader, piece, decoder)
    return _prefilled(reader)


def _cached_slices(
    reader: PromptReader,
    pieces: Iterator[Sequence[int]],
    cache: PrefixCache,
    decoder: Decoder | None,
) -> Slices:
    group, key = list(islice(pieces, _LOOKED_UP)), ROOT
    while group:
        following = list(islice(pieces, _LOOKED_UP))
        keys = keys_of(group, key)
        n_known, saved = cache.longest(keys, whole=not following)
        if saved is not None:
            reader.skip(group[:n_known], saved)
        for number in range(n_known, len(group)):
            yield from _read(reader, group[number], decoder)
            whole = not following and number == len(group) - 1
            if whole or is_checkpoint(reader.n_tokens):
                cache.add(keys[number], reader.saved(whole=whole))
        group, key = following, keys[-1]
    return _prefilled(reader)


def _read(
    reader: PromptReader, piece: Sequence[int], decoder: Decoder | None
) -> Generator[ShortPiece | None, PieceRead | None, None]:
    """Read the next piece here, or have it read by the decode step."""
    if decoder and decoder.reads_pieces_of(len(piece)) and not reader.is_scoring:
        read = yield reader.short(piece)
        assert read is not None
        reader.take(piece, read)
        return
    if reader.n_read:
        yield None
    reader.read(piece)


def _decoded(decoder: Decoder, piece: ShortPiece) -> PieceRead:
    """A short piece as it is read alone: with the same bits as beside others."""
    sequence, memory = decoder.sequence(piece.state), StepMemory()
    for id in piece.ids:
        logits_NV = decoder.step([sequence], [id], memory=memory)
    return PieceRead(logits_NV[0].clone(), decoder.state(sequence))


def _prefilled(reader: PromptReader) -> Prefilled:
    if reader.logits_V is None or reader.state is None:
        raise ValueError("prefill needs at least one id; an empty prompt begins with <end>")
    recent = tuple(reader.recent)
    return Prefilled(reader.logits_V, reader.state, recent, reader.n_tokens, reader.n_cached)


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
