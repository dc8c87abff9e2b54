"""A session: a text that a model reads and writes, whose state is kept, forked and undone.

    session = Session(Engine(loaded))
    session.read(["Once upon a time"])           # the first text of a session begins with <end>
    tokens = list(session.generate(sampling))    # goes on; the state is then that after the answer
    other = session.fork()                       # two texts with one beginning
    session.undo()                               # exactly as before the last step

What a session stands at is a `Snapshot`, a value: its tensors are never changed, so that a fork
costs nothing and any number of sessions share one model. `step` marks what `undo` takes back; the
snapshots before each step are kept in a ring of bounded memory, and to undo is to take one of them.

A state is bit for bit the one that the same texts and answers give anew. `session_file.py` saves
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.chat import TOKEN_OF_ROLE
from ys_llm.errors import UserError
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.copied import Copied
from ys_llm.inference.decode_step import DecodeRows, decode_rows
from ys_llm.inference.engine import Engine
from ys_llm.inference.generate import (
    Prefilled,
    as_prompt,
    copied_from,
    drained,
    encode_pieces,
    prefill,
    prefill_cached,
)
from ys_llm.inference.memories import NOTHING_MUTED, Memory, MutedRows, measured, muted_slices
from ys_llm.inference.prefix_cache import MEGABYTE, SavedPrefix, pieces_of
from ys_llm.inference.sampling import Sampler, ScoredToken, log_softmax, score_token
from ys_llm.model.state import State

RING_BYTES = 64 * MEGABYTE
TAIL_IDS = 4096  # the last ids of a text, which are kept to be shown


@dataclass(frozen=True)
class Span:
    """Ids that were read from a state on; None: from the beginning of a text."""

    state: State | None
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What the model wrote last, and what it wrote it from; `ids` may end with an end token."""

    written_from: Prefilled
    ids: tuple[int, ...]


class Typed(NamedTuple):
    """What a user did: a word for it, and the text or the name that belongs to it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Snapshot:
    """What a session stands at: a state with the logits after it, and the end of the text.

    `now` is None before anything was read. `last_piece` is what was read last in one call.
    `typed` tells what led here, and `log_id` is its number in the log: both are set by the owner.
    """

    now: Prefilled | None = None
    tail: tuple[int, ...] = ()
    last_piece: Span | None = None
    answer: Answer | None = None
    typed: Typed | None = None
    log_id: int | None = None

    @property
    def n_tokens(self) -> int:
        """How many tokens the state has read."""
        return 0 if self.now is None else self.now.n_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of memory; what several snapshots share counts for each."""
        states = [
            read.state for read in (self.now, self.answer and self.answer.written_from) if read
        ]
        states += [self.last_piece.state] if self.last_piece and self.last_piece.state else []
        logits = [
            read.logits_V for read in (self.now, self.answer and self.answer.written_from) if read
        ]
        n_bytes = sum(SavedPrefix(state).n_bytes for state in states)
        return n_bytes + sum(tensor.nbytes for tensor in logits) + 64 * len(self.tail)


@dataclass(frozen=True)
class ReadCount:
    """How many tokens a reading added, and how many of them came from saved states."""

    n_tokens: int
    n_cached: int = 0


@dataclass
class Ring:
    """Snapshots that `undo` goes back to, at most `max_bytes` of them: the oldest go first."""

    max_bytes: int = RING_BYTES
    n_bytes: int = 0
    snapshots: deque[Snapshot] = field(default_factory=deque)

    def push(self, snapshot: Snapshot) -> None:
        """Keep another one."""
        self.snapshots.append(snapshot)
        self.n_bytes += snapshot.n_bytes
        self.resize(self.max_bytes)

    def resize(self, max_bytes: int) -> None:
        """Keep no more than this."""
        self.max_bytes = max_bytes
        while self.n_bytes > self.max_bytes:
            self.n_bytes -= self.snapshots.popleft().n_bytes

    def pop(self) -> Snapshot:
        """Take the latest one out."""
        snapshot = self.snapshots.pop()
        self.n_bytes -= snapshot.n_bytes
        return snapshot

    def copy(self) -> Ring:
        """Another ring of the same snapshots."""
        return Ring(self.max_bytes, self.n_bytes, self.snapshots.copy())


class Session:
    """See the top of this file. `muted` are memories that contribute nothing, see `memories.py`."""

    def __init__(
        self, engine: Engine, at: Snapshot | None = None, ring: Ring | None = None
    ) -> None:
        self.engine, self.at = engine, at or Snapshot()
        self.ring, self.muted = ring or Ring(), NOTHING_MUTED

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is done inside is one step for `undo`; nothing, if nothing was read or written."""
        before = self.at
        try:
            yield
        finally:
            if self.at is not before:
                self.ring.push(before)

    def fork(self) -> Session:
        """Another session that stands where this one does, and can undo what this one can."""
        other = Session(self.engine, self.at, self.ring.copy())
        other.muted = self.muted
        return other

    def undo(self, n_steps: int = 1) -> None:
        """Go back to before the last steps; UserError where fewer are kept, and nothing changes."""
        if not 0 < n_steps <= len(self.ring.snapshots):
            kept = len(self.ring.snapshots)
            problem = f"{n_steps} steps cannot be undone: the last {kept} are kept"
            raise UserError(problem, f"Type a number from 1 to {kept}." if kept else "")
        for _ in range(n_steps):
            self.at = self.ring.pop()

    def undo_tokens(self, n_tokens: int) -> None:
        """Take back the last tokens of the answer, as if it had been stopped before them.

        This is no step of its own. What is left of the answer is computed again, with the same
        bits. UserError where the last step wrote fewer, and nothing changes.
        """
        answer, before = self.at.answer, self.at
        n_written = 0 if answer is None else len(answer.ids)
        if answer is None or not 0 < n_tokens <= n_written:
            problem = f"{n_tokens} tokens cannot be taken back: the last answer has {n_written}"
            raise UserError(problem, "Undo the whole step instead.")
        left = answer.ids[: n_written - n_tokens]
        n_tail = len(before.tail) - len(self._read_ids(answer.ids))
        at = replace(before, now=answer.written_from, tail=before.tail[:n_tail], answer=None)
        self.at = self._written(at, answer.written_from, left)

    def read(
        self,
        pieces: Iterable[str],
        *,
        is_prompt: bool = False,
        anew: bool = False,
        system: str = "",
    ) -> ReadCount:
        """Read a text that comes in pieces, in memory that does not grow with its length.

        The first text that is read begins with `<end>`, and so does a prompt to be answered, which
        `<start>` ends; where the model chats, it is a turn, after a `system` text where there is
        one. `anew` begins another text: the model knows nothing of what came before.
        Where reading is interrupted, nothing was read.
        """
        tokenizer = self.engine.loaded.tokenizer
        ids: Iterable[int] = encode_pieces(tokenizer, pieces)
        if is_prompt:
            ids = as_prompt(tokenizer, ids, chats=self.engine.loaded.chats)
        if system:
            begin = tokenizer.controls[TOKEN_OF_ROLE["system"]]
            ids = chain([begin], tokenizer.encode(system), ids)
        if is_prompt or anew or not self.at.n_tokens:
            ids = chain([tokenizer.end_id], ids)
        return self.read_ids(ids, anew=anew)

    def read_ids(self, ids: Iterable[int], *, anew: bool = False) -> ReadCount:
        """Read tokens; see `read`."""
        before = Snapshot() if anew else self.at
        tail = deque(before.tail, TAIL_IDS)
        cache = self.engine.cache
        if before.now is None and cache is not None and not self.muted:
            tapped = _noted(ids, tail)
            model, decoder = self.engine.loaded.model, self.engine.decoder
            now = prefill_cached(model, tapped, cache, decoder=decoder)
            self.at = Snapshot(now, tuple(tail))
            return ReadCount(now.n_tokens, now.n_cached)
        at: Snapshot = before
        for piece in pieces_of(_noted(ids, tail)):
            span = Span(None if at.now is None else at.now.state, tuple(piece))
            at = Snapshot(self._read_piece(at.now, piece), last_piece=span)
        if at is not before:
            self.at = replace(at, tail=tuple(tail))
        return ReadCount(at.n_tokens - before.n_tokens)

    def generate(self, sampling: GenerateConfig, *, n_candidates: int = 0) -> Iterator[ScoredToken]:
        """The continuation, token by token, as `generate.generate` draws it.

        The session then stands after its last token, or before the end token that the model chose.
        Close the iterator to stop earlier: what it has yielded counts as written.
        """
        begun = self.at
        if begun.now is None:
            raise ValueError("nothing was read yet")
        end_ids, recent = self.engine.loaded.end_ids, begun.now.recent
        sampler = Sampler(sampling, end_ids=end_ids, recent=recent, n_candidates=n_candidates)
        rows, logits_V, ids = self._rows(begun.now), begun.now.logits_V, list[int]()
        is_whole = False
        try:
            while not sampler.finished:
                token = sampler.sample(logits_V)
                ids.append(token.id)
                yield token
                if token.id not in end_ids:
                    logits_V = rows.step([token.id])[0]
            is_whole = True
        finally:
            if is_whole and ids:
                now = _after(begun.now, rows, logits_V, self._read_ids(ids))
                self.at = self._answered(begun, now, ids)
            elif ids:  # a step may have been interrupted half-way
                self.at = self._written(begun, begun.now, ids)

    def write(self, ids: Sequence[int]) -> None:
        """Write these tokens, as if the model had drawn them: the same state, bit for bit."""
        if self.at.now is None:
            raise ValueError("nothing was read yet")
        self.at = self._written(self.at, self.at.now, ids)

    def score(self, text: str, *, n_candidates: int = 0) -> list[ScoredToken]:
        """The tokens of a text as if it were read now, each scored by what is before it."""
        model, ids = self.engine.loaded.model, self.engine.loaded.tokenizer.encode(text)
        other = self.fork()
        if other.at.now is None:
            other.read_ids([self.engine.loaded.tokenizer.end_id])
        assert other.at.now is not None
        logits_V, scored = other.at.now.logits_V, list[ScoredToken]()
        if self.muted:
            rows = self._rows(other.at.now)
            for id in ids:
                scored.append(score_token(id, log_softmax(logits_V), n_candidates))
                logits_V = rows.step([id])[0]
        elif ids:
            scored.append(score_token(ids[0], log_softmax(logits_V), n_candidates))
            state, note = other.at.now.state, scored.append
            prefill(model, ids, state, observe=note, n_candidates=n_candidates)
        return scored

    def memories(self) -> list[Memory]:
        """Every memory of the state, with its latest change; reads at most the last step again."""
        now, answer, piece = self.at.now, self.at.answer, self.at.last_piece
        if now is None:
            return []
        span = piece or Span(now.state, ())
        if answer is not None:
            span = Span(answer.written_from.state, tuple(self._read_ids(answer.ids)))
        return measured(self.engine.loaded.model, now.state, span.state, span.ids)

    def copied(self) -> list[Copied]:
        """What of each token of the last answer was copied; empty without a copy tier.

        The end of the text before the answer is read again, or all of it where that was kept.
        """
        answer, piece = self.at.answer, self.at.last_piece
        if answer is None:
            return []
        n_before = len(self.at.tail) - len(self._read_ids(answer.ids))
        before = piece or Span(None, self.at.tail[: max(0, n_before)])
        if piece is None and answer.written_from.n_tokens != len(before.ids):
            return []
        return copied_from(self.engine.loaded.model, before.ids, answer.ids, before.state)

    def _read_piece(self, before: Prefilled | None, piece: Sequence[int]) -> Prefilled:
        model = self.engine.loaded.model
        if self.muted:
            rows = MutedRows(decode_rows(model, self.engine.decoder), self.muted)
            state = model.init_state(1) if before is None else before.state
            read = drained(muted_slices(rows, piece, state))
        else:
            carried = None if before is None else before.state
            read = prefill(model, piece, carried, decoder=self.engine.decoder)
        if before is None:
            return read
        recent = (*before.recent, *piece)[-PENALTY_WINDOW:]
        return replace(read, recent=recent, n_tokens=before.n_tokens + len(piece))

    def _rows(self, at: Prefilled) -> DecodeRows:
        model = self.engine.loaded.model
        rows: DecodeRows = decode_rows(model, self.engine.decoder)
        if self.muted:
            rows = MutedRows(rows, self.muted)
        rows.add([at.state])
        return rows

    def _written(self, at: Snapshot, start: Prefilled, ids: Sequence[int]) -> Snapshot:
        """The snapshot after these tokens, decoded one by one as `generate` decodes them."""
        read, rows, logits_V = self._read_ids(ids), self._rows(start), start.logits_V
        for id in read:
            logits_V = rows.step([id])[0]
        return self._answered(at, _after(start, rows, logits_V, read) if read else start, ids)

    def _answered(self, begun: Snapshot, now: Prefilled, ids: Sequence[int]) -> Snapshot:
        assert begun.now is not None
        tail = (*begun.tail, *self._read_ids(ids))[-TAIL_IDS:]
        answer, piece, last = Answer(begun.now, tuple(ids)), begun.last_piece, begun.answer
        if last is not None and (read := self._read_ids(last.ids)):
            piece = Span(last.written_from.state, tuple(read))
        return replace(begun, now=now, tail=tail, last_piece=piece, answer=answer, log_id=None)

    def _read_ids(self, ids: Sequence[int]) -> Sequence[int]:
        """What of an answer the model has read: all but the token that ended it."""
        return ids[:-1] if ids and ids[-1] in self.engine.loaded.end_ids else ids


def _after(start: Prefilled, rows: DecodeRows, logits_V: Tensor, ids: Sequence[int]) -> Prefilled:
    """What the only row stands at after these ids."""
    recent = (*start.recent, *ids)[-PENALTY_WINDOW:]
    return Prefilled(logits_V.clone(), rows.row_state(0), recent, start.n_tokens + len(ids))


def _noted(ids: Iterable[int], tail: deque[int]) -> Iterator[int]:
    for id in ids:
        tail.append(id)
        yield id
