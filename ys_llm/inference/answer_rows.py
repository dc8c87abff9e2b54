"""The answers that are generated together: one row each, with options, seed and end of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.inference.decode_step import DecodeRows
from ys_llm.inference.explain import Explained, Explainer, parts_of
from ys_llm.inference.generate import Prefilled
from ys_llm.inference.generation import Drawn, Event, Finished, Generation
from ys_llm.inference.kept import Kept
from ys_llm.inference.sampling import Sampler, ScoredToken, sample_rows
from ys_llm.inference.stop_text import StopText
from ys_llm.model.state import State
from ys_llm.runs.model_files import LoadedRun

Emit = Callable[[Generation, Event], None]
_Options = tuple[float, int, float, float, float]  # what one call of `sample_rows` has one of


@dataclass(eq=False)
class _Row:
    """An answer while it is generated."""

    generation: Generation
    sampler: Sampler
    text: StopText
    explainer: Explainer | None
    last_id: int = -1
    n_tokens: int = 0
    reason: Literal["stop", "length"] | None = None  # it is finished


class AnswerRows:
    """Draws the next token of every row, and emits what happens."""

    def __init__(self, loaded: LoadedRun, rows: DecodeRows, emit: Emit) -> None:
        self._loaded, self._decode_rows, self._emit = loaded, rows, emit
        self._rows, self._joining = list[_Row](), list[State]()

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, generation: Generation, read: Prefilled) -> None:
        """Draw the first token of an answer, which joins the batch if it has more."""
        request, tokenizer = generation.request, self._loaded.tokenizer
        row = _Row(
            generation,
            Sampler(
                request.sampling,
                end_ids=self._loaded.end_ids,
                recent=read.recent,
                n_candidates=request.n_candidates,
            ),
            StopText(tokenizer, request.stop),
            Explainer(self._loaded.model, read.state, request.muted) if request.explain else None,
        )
        before = Kept(read.state, (), tuple(row.sampler.recent), read.logits_V)
        if row.sampler.finished:  # only the prompt was to be read
            row.reason = "length"
            self._finish(row, before)
            return
        explained, recent = None, tuple(row.sampler.recent)
        token = row.sampler.sample(read.logits_V)
        if row.explainer is not None:
            explained = row.explainer.explain(parts_of(read.state), read.logits_V, token)
        self._take(row, token, explained, before if request.keep == "each" else None)
        if row.reason is None:
            self._joining.append(read.state)
            self._rows.append(row)
        else:
            self._finish(row, Kept(read.state, (self._pending(row),), recent))

    def step(self) -> None:
        """Read the last token of every row and draw the next one."""
        if not self._rows:
            return
        self._join()
        for i, row in enumerate(self._rows):
            if muted := row.generation.request.muted:
                self._decode_rows.empty(i, muted)
            if row.explainer is not None:
                row.explainer.read(row.last_id)
        logits_NV = self._decode_rows.step([row.last_id for row in self._rows])
        for numbers in _alike(self._rows):
            self._draw(numbers, logits_NV)
        for i, row in enumerate(self._rows):
            if row.reason is not None:
                self._finish(row, self._kept_end(i, row))
        self.keep(lambda generation: True)

    def keep(self, is_wanted: Callable[[Generation], bool]) -> list[Generation]:
        """Drop the rows that are finished or not wanted; the latter are returned."""
        unwanted = [row for row in self._rows if not is_wanted(row.generation)]
        remaining = [
            i for i, row in enumerate(self._rows) if row.reason is None and row not in unwanted
        ]
        if len(remaining) < len(self._rows):
            self._join()
            self._decode_rows.keep(remaining)
            self._rows = [self._rows[i] for i in remaining]
        return [row.generation for row in unwanted]

    def clear(self) -> list[Generation]:
        """Drop all rows."""
        return self.keep(lambda generation: False)

    def _join(self) -> None:
        """Add the states of new rows, together, since all rows are moved."""
        self._decode_rows.add(self._joining)
        self._joining = []

    def _draw(self, numbers: Sequence[int], logits_NV: Tensor) -> None:
        """The tokens of rows with the same options."""
        rows = [self._rows[i] for i in numbers]
        befores = [self._kept_before(i, logits_NV) for i in numbers]
        chosen_NV = logits_NV if len(numbers) == len(logits_NV) else logits_NV[list(numbers)]
        drawn = sample_rows([row.sampler for row in rows], chosen_NV)
        for i, row, token, before in zip(numbers, rows, drawn, befores, strict=True):
            explained = None
            if row.explainer is not None:
                parts = self._decode_rows.parts(i)
                explained = row.explainer.explain(parts, logits_NV[i], token)
            self._take(row, token, explained, before)

    def _take(
        self, row: _Row, token: ScoredToken, explained: Explained | None, before: Kept | None
    ) -> None:
        """Note a token that was drawn."""
        row.last_id, row.n_tokens = token.id, row.n_tokens + 1
        is_end = token.id in self._loaded.end_ids
        text = "" if is_end else row.text.push(token.id)
        if is_end or row.text.stopped:
            row.reason = "stop"
        elif row.sampler.finished:
            row.reason = "length"
        self._emit(row.generation, Drawn(token, text, explained, before))

    def _finish(self, row: _Row, kept: Kept | None) -> None:
        assert row.reason is not None
        generation, text = row.generation, row.text.flush()
        reason = "stop" if row.text.stopped else row.reason
        finished = Finished(
            text,
            reason,
            row.n_tokens,
            generation.read_at - generation.began_at,
            time.perf_counter() - generation.read_at,
            None if generation.request.keep == "none" else kept,
        )
        self._emit(generation, finished)

    def _kept_before(self, i: int, logits_NV: Tensor) -> Kept | None:
        row = self._rows[i]
        if row.generation.request.keep != "each":
            return None
        recent = tuple(row.sampler.recent)
        return Kept(self._decode_rows.row_state(i), (), recent, logits_NV[i].clone())

    def _kept_end(self, i: int, row: _Row) -> Kept | None:
        if row.generation.request.keep == "none":
            return None
        recent = tuple(row.sampler.recent)
        return Kept(self._decode_rows.row_state(i), (self._pending(row),), recent[:-1])

    def _pending(self, row: _Row) -> int:
        """The last token of an answer; `<end>` where the model began to speak for somebody else."""
        end_id = self._loaded.tokenizer.end_id
        return end_id if row.last_id in self._loaded.end_ids else row.last_id


def _alike(rows: Sequence[_Row]) -> Iterable[list[int]]:
    """The numbers of the rows that one call can draw, as it has one set of options."""
    groups: dict[_Options, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_options(row.sampler.sampling), []).append(i)
    return groups.values()


def _options(sampling: GenerateConfig) -> _Options:
    return (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
    )
