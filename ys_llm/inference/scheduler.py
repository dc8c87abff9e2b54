"""Many requests on one model: prompts are read in slices, answers are decoded as one batch.

One thread does both. Prompts are read a piece at a time between the decode steps, so that a long
one does not stop the others, and short pieces of all prompts together (`piece_rows.py`); what they
have in common is read once (`prefix_cache.py`). A row joins after its prompt and leaves with its
last token, or within a token after its client has left. The answer of each is the one that it gets
alone: its pieces are the same, and with the compiled decoder every step has the same bits in any
batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from ys_llm.inference.answer_rows import AnswerRows
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.decode_step import DecodeRows, decode_rows
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import Prefilled, Slices, prefill_slices
from ys_llm.inference.generation import (
    Event,
    Failed,
    Finished,
    Generation,
    GenerationRequest,
    PromptRead,
)
from ys_llm.inference.memories import MutedRows, muted_slices
from ys_llm.inference.piece_rows import PieceRows, Reading
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.prompt_reader import PieceRead, PromptReader
from ys_llm.inference.sampling import ScoredToken
from ys_llm.runs.model_files import LoadedRun

MAX_ROWS, MAX_WAITING = 64, 512
# Of reading prompts between two decode steps, once for short pieces and once for all others; at
# least one token of each of those, and one of these.
_SLICE_SECONDS = 0.005
# Of weights: a step has fewer threads here than it has alone. They wait for each other, and so for
# all that shares the processor with one of them: the event loop, clients, other programs.
_BYTES_PER_THREAD = 8 << 20
# Of many rows, the tokens of this time are delivered together: whoever sends them shares the
# processor with the steps, and to be woken costs as much for one token as for several.
_MANY_ROWS, _DELIVERY_SECONDS = 8, 0.015

Deliver = Callable[[Sequence[tuple[Generation, Event]]], None]


class QueueFullError(Exception):
    """As many requests wait as may."""


class ClosedError(Exception):
    """The scheduler was closed before the answer was complete."""


class Scheduler:
    """Serves one model; `deliver` is called in the scheduler's thread, with what happened.

    At most `max_rows` prompts and answers are in work together, and `max_waiting` more wait.
    """

    def __init__(
        self,
        loaded: LoadedRun,
        deliver: Deliver,
        *,
        cache_bytes: int,
        max_rows: int = MAX_ROWS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.loaded, self._deliver = loaded, deliver
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._cache = PrefixCache(cache_bytes) if cache_bytes else None
        self._incoming = queue.SimpleQueue[Generation | None]()
        self._waiting, self._reading = deque[Generation](), deque[Reading]()
        self._events: list[tuple[Generation, Event]] = []
        self._delivered_at = 0.0
        self._decoder = decoder_of(loaded.model)
        self._rows = AnswerRows(loaded, self._decode_rows(), self._emit)
        self._pieces = PieceRows(self._decode_rows())
        self._lock, self._unfinished, self._is_closed = threading.Lock(), set[Generation](), False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def n_rows(self) -> int:
        """Answers that are being generated."""
        return len(self._rows)

    @property
    def n_waiting(self) -> int:
        """Requests whose answers have not begun."""
        return max(0, len(self._unfinished) - len(self._rows))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked."""
        return not self._unfinished

    def submit(self, request: GenerationRequest) -> Generation:
        """Serve a request when its turn comes; QueueFullError where too many wait."""
        generation = Generation(request)
        with self._lock:
            if self._is_closed:
                raise ClosedError("the model was unloaded")
            if len(self._unfinished) >= self._max_rows + self._max_waiting:
                raise QueueFullError
            self._unfinished.add(generation)
        self._incoming.put(generation)
        return generation

    def close(self) -> None:
        """Fail what is not finished, and end the thread."""
        with self._lock:
            self._is_closed = True
        self._incoming.put(None)
        self._thread.join()

    def _work(self) -> None:
        while self._receive():
            try:
                self._leave()
                self._admit()
                self._read()
                self._read_short()
                self._rows.step()
            except Exception as error:  # no request may end the thread that serves the others
                self._fail_all(error)
            self._flush_in_time()
        self._fail_all(ClosedError("the model was unloaded"))
        self._flush()

    def _receive(self) -> bool:
        """Take what was submitted, wait for it where nothing is to be done; False when closed."""
        is_idle = not (self._waiting or self._reading or self._pieces or self._rows)
        try:
            while (generation := self._incoming.get(block=is_idle)) is not None:
                is_idle = False
                if generation in self._unfinished:  # it has not failed with all others
                    self._waiting.append(generation)
        except queue.Empty:
            return True
        return False

    def _decode_rows(self) -> DecodeRows:
        """An empty batch."""
        model, decoder = self.loaded.model, self._decoder
        if decoder is None:
            return decode_rows(model, None)
        share = int(decoder.bytes_per_token / _BYTES_PER_THREAD)
        return decode_rows(model, decoder, threads=max(1, min(decoder.threads, share)))

    def _leave(self) -> None:
        """Forget the requests whose clients have left."""
        self._count_out(self._rows.keep(lambda one: not one.cancelled))
        if any(one.cancelled for one in self._waiting):
            self._count_out([one for one in self._waiting if one.cancelled])
            self._waiting = deque(one for one in self._waiting if not one.cancelled)
        self._count_out(self._pieces.drop(lambda one: one.cancelled))
        if any(one.generation.cancelled for one in self._reading):
            reading = [one.generation for one in self._reading]
            self._count_out([one for one in reading if one.cancelled])
            self._reading = deque(one for one in self._reading if not one.generation.cancelled)

    def _count_out(self, generations: Sequence[Generation]) -> None:
        with self._lock:
            self._unfinished.difference_update(generations)

    def _admit(self) -> None:
        """Begin with prompts that wait, as long as there are rows for their answers."""
        n_begun = len(self._reading) + len(self._pieces) + len(self._rows)
        for _ in range(min(len(self._waiting), self._max_rows - n_begun)):
            generation, scored = self._waiting.popleft(), list[ScoredToken]()
            generation.began_at = time.perf_counter()
            slices = self._slices(generation.request, scored)
            self._reading.append(Reading(generation, slices, scored))

    def _read(self) -> None:
        """Read pieces of the prompts in turn, until the time of a slice is over."""
        ends = time.perf_counter() + _SLICE_SECONDS
        while self._reading:
            self._go_on(self._reading.popleft())
            if time.perf_counter() > ends:
                return

    def _read_short(self) -> None:
        """Read short pieces together, until the time of a slice is over."""
        ends = time.perf_counter() + _SLICE_SECONDS
        while self._pieces:
            for reading, read in self._pieces.step():
                self._go_on(reading, read)
            if time.perf_counter() > ends:
                return

    def _go_on(self, reading: Reading, read: PieceRead | None = None) -> None:
        """Read a piece of a prompt, up to the next or a short one; `read` is the one before."""
        try:
            if (piece := reading.slices.send(read)) is None:
                self._reading.append(reading)
            else:
                self._pieces.add(reading, piece)
        except StopIteration as end:
            self._begin(reading, end.value)
        except Exception as error:  # of this prompt: too long, no text
            self._emit(reading.generation, Failed(error))

    def _slices(self, request: GenerationRequest, scored: list[ScoredToken]) -> Slices:
        """Read a prompt, and note the scores of its tokens where they are asked for."""
        after, model = request.after, self.loaded.model
        ids = iter(request.ids)
        first = next(ids, None)
        if first is None and after is not None and after.logits_V is not None:
            return Prefilled(after.logits_V, after.state, after.recent, 0)
        rest = ids if first is None else chain([first], ids)
        if request.muted:
            rows = MutedRows(self._decode_rows(), request.muted)
            state = model.init_state(1) if after is None else after.state
            read = yield from muted_slices(rows, rest, state)
        else:
            note = scored.append if request.score_prompt else None
            before = None if after is None else after.state
            reader = PromptReader(model, before, note, request.n_candidates)
            cache = self._cache if after is None and note is None else None
            read = yield from prefill_slices(reader, rest, cache, decoder=self._decoder)
        if after is not None:
            read = replace(read, recent=(*after.recent, *read.recent)[-PENALTY_WINDOW:])
        return read

    def _begin(self, reading: Reading, read: Prefilled) -> None:
        generation, scored = reading.generation, tuple(reading.scored)
        generation.read_at = time.perf_counter()
        self._emit(generation, PromptRead(read.n_tokens, read.n_cached, scored))
        self._rows.begin(generation, read)

    def _emit(self, generation: Generation, event: Event) -> None:
        self._events.append((generation, event))

    def _fail_all(self, error: Exception) -> None:
        """Fail every request that is not finished, also those that were submitted just now."""
        self._rows.clear()
        self._pieces.drop(lambda one: True)
        self._reading.clear()
        self._waiting.clear()
        over = {one for one, event in self._events if isinstance(event, Finished | Failed)}
        with self._lock:
            failed = self._unfinished - over
        for generation in failed:
            self._emit(generation, Failed(error))

    def _flush_in_time(self) -> None:
        """Deliver what has happened, of many rows now and then."""
        elapsed = time.perf_counter() - self._delivered_at
        if len(self._rows) < _MANY_ROWS or elapsed >= _DELIVERY_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if not self._events:
            return
        self._delivered_at = time.perf_counter()
        events, self._events = self._events, []
        self._count_out([one for one, event in events if isinstance(event, Finished | Failed)])
        self._deliver([pair for pair in events if not pair[0].cancelled])
