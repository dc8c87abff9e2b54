"""The compiled decoder: one call reads one token of each of several sequences.

Torch needs some forty operations per layer, and for one token launching them costs more than their
arithmetic. `csrc/trunk_step.cpp` is one call that reads each weight once. It computes what
`model(tokens_BT, state)` does, state included, so that either can continue where the other stopped.
It serves models on the CPU whose mixers all have a compiled step (`Mixer.decode_spec`), once the
library is compiled; torch decodes every other model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.csrc.loader import Library
from ys_llm.inference.copy_ring import CopyRing
from ys_llm.inference.decoder_weights import WeightStructs, can_decode, tensors_of
from ys_llm.inference.prefix_cache import PIECE_SIZES
from ys_llm.mixers.protocol import DecodeSpec
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, flatten, unflatten

MAX_SEQUENCES = 64  # of one call, as in csrc/api.h
# Bytes of weights that make another thread worthwhile: threads synchronise about five times per
# layer.
BYTES_PER_THREAD = 1 << 20
# Bytes of weights that are read for a piece of a prompt, all of them for every token, in about the
# time in which torch reads the piece: 20 ms (Zen 4, two threads, 9 to 86 MiB of weights).
_BYTES_PER_PIECE = 1 << 30
_SAMPLED = 64  # elements of each tensor that are compared to detect a change


@dataclass
class SequenceState:
    """One sequence as the decoder keeps it: the clock, and all states in one vector.

    Behind those of the layers it holds `pending` of the copy tier, whose tokens are in `ring`.
    """

    numbers: Tensor
    position: int
    ring: CopyRing | None = None


class StepMemory:
    """Memory of a step, used again by the next one: fresh memory costs as much as many rows do.

    The logits of a step are in it until the next step.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def empty(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """At least `size` numbers."""
        tensor = self._tensors.get(name)
        if tensor is None or len(tensor) < size:
            tensor = self._tensors[name] = torch.empty(size, dtype=dtype)
        return tensor[:size]


class Decoder:
    """Decodes with a model's weights as they were when this was built.

    `step` changes nothing here, so threads may share it, each with its own sequences. `threads` is
    the number of OpenMP threads of a step: by default one for each MiB of weights that it reads, at
    most as many as torch has.
    """

    def __init__(
        self,
        model: Model,
        specs: list[DecodeSpec],
        library: Library,
        *,
        threads: int | None = None,
    ) -> None:
        self._library, self._dtype = library, model.embedding.weight.dtype
        self._weights = WeightStructs(model, specs, library)
        self._vocab_size, self._names = model.vocab_size, [spec.state for spec in specs]
        self._zeros: list[Any] = model.init_state(1)["layers"]
        self._empty = flatten({"layers": self._zeros})
        self._copy_tier = model.copy_tier
        lib = library.lib
        self._step = lib.ys_decode_d if self._dtype == torch.float64 else lib.ys_decode_f
        share = int(self.bytes_per_token / BYTES_PER_THREAD)
        self.threads = threads or max(1, min(torch.get_num_threads(), share))
        self._check_state_sizes()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of weights read per token; those used at some tokens only count on average."""
        return self._weights.bytes_per_token

    def reads_pieces_of(self, n_tokens: int) -> bool:
        """Whether so short a piece of a prompt is to be read here, and not by the model."""
        is_short = n_tokens * self.bytes_per_token <= _BYTES_PER_PIECE
        return is_short and n_tokens < PIECE_SIZES[0]

    def sequence(self, state: State, row: int = 0) -> SequenceState:
        """One row of a model's state, to continue from; the state itself does not change."""
        parts: list[Tensor] = []
        for names, layer in zip(self._names, state["layers"], strict=True):
            tensors = flatten(layer)
            parts += [tensors[name][row].reshape(-1) for name in names]
        ring = None
        if self._copy_tier is not None:
            parts.append(state["copy"]["pending"][row])
            panel = self._weights.panel
            ring = CopyRing(self._copy_tier, state["copy"], row, self._library, panel)
        numbers = torch.cat(parts).to(self._dtype)
        return SequenceState(numbers, int(state["position_B"][row]), ring)

    def state(self, sequence: SequenceState) -> State:
        """The inverse of `sequence`: a model's state of one row."""
        parts = {name: part.clone()[None] for name, part in self.parts(sequence).items()}
        layers = unflatten(parts, {"layers": self._zeros})["layers"]
        state: State = {"position_B": torch.tensor([sequence.position]), "layers": layers}
        if sequence.ring is not None:
            n_layers = sum(part.numel() for part in parts.values())
            pending_BK = sequence.numbers[None, n_layers:].clone()
            state["copy"] = {**sequence.ring.state(), "pending": pending_BK}
        return state

    def parts(self, sequence: SequenceState) -> dict[str, Tensor]:
        """What the layers carry, by name (`layers.0.main`): views of the numbers."""
        views, begin = {}, 0
        for layer, (names, zeros) in enumerate(zip(self._names, self._zeros, strict=True)):
            like = flatten(zeros)
            for name in names:
                shape, size = like[name].shape[1:], like[name].numel()
                views[f"layers.{layer}.{name}"] = sequence.numbers[begin : begin + size].view(shape)
                begin += size
        return views

    def empty(self, sequence: SequenceState, names: Collection[str]) -> None:
        """See `DecodeRows.empty`."""
        parts, n_layers = self.parts(sequence), sum(zeros.numel() for zeros in self._empty.values())
        with torch.inference_mode():
            for name in names:
                if name in parts:
                    parts[name].copy_(self._empty[name][0])
            if "copy.pending" in names:
                sequence.numbers[n_layers:].zero_()
        if sequence.ring is not None:
            sequence.ring.empty(names)

    def step(
        self,
        sequences: Sequence[SequenceState],
        ids: Sequence[int],
        *,
        threads: int | None = None,
        memory: StepMemory | None = None,
    ) -> Tensor:
        """Read one token of each sequence (at most MAX_SEQUENCES); the logits after it, N x V.

        The sequences are advanced in place. The logits of each are bit for bit those that it gets
        alone, on any number of threads. It is fastest for sequences whose numbers are rows of one
        tensor, in order (`side_by_side`).
        """
        n = len(sequences)
        if not 0 < n <= MAX_SEQUENCES or n != len(ids):
            raise ValueError(f"expected 1 to {MAX_SEQUENCES} sequences and as many ids, found {n}")
        if not all(0 <= id < self._vocab_size for id in ids):
            raise ValueError(f"ids {list(ids)} are not all below {self._vocab_size}")
        library, threads = self._library, threads or self.threads
        struct, new = self._weights.struct, library.ffi.new
        memory, size = memory or StepMemory(), library.lib.ys_decode_scratch(struct, n, threads)
        scratch = memory.empty("scratch", size, self._dtype)
        logits_NV = memory.empty("logits", n * self._vocab_size, self._dtype).view(n, -1)
        states = [library.pointer(sequence.numbers) for sequence in sequences]
        rings = [sequence.ring.prepared() for sequence in sequences if sequence.ring is not None]
        self._step(
            struct,
            n,
            new("int64_t[]", ids),
            new("int64_t[]", [sequence.position for sequence in sequences]),
            new("double *[]" if self._dtype == torch.float64 else "float *[]", states),
            new("struct ys_copy_ring *[]", rings) if rings else library.ffi.NULL,
            library.pointer(logits_NV),
            library.pointer(scratch),
            threads,
        )
        for sequence in sequences:
            sequence.position += 1
        return logits_NV

    @staticmethod
    def side_by_side(sequences: Sequence[SequenceState]) -> list[SequenceState]:
        """The sequences with their numbers in rows of one tensor; the given ones are used up."""
        if not sequences:
            return []
        rows = torch.stack([sequence.numbers for sequence in sequences])
        return [replace(one, numbers=row) for one, row in zip(sequences, rows, strict=True)]

    def _check_state_sizes(self) -> None:
        for layer, (names, zeros) in enumerate(zip(self._names, self._zeros, strict=True)):
            tensors = flatten(zeros)
            size = sum(tensor.numel() for tensor in tensors.values())
            expected = self._weights.state_size(layer)
            if size != expected or sorted(tensors) != sorted(names):
                raise ValueError(
                    f"layer {layer}: the mixer's state has {size} numbers in {sorted(tensors)}, "
                    f"that of its compiled step {expected} in {sorted(names)}"
                )


class _DecoderCache:
    """The decoder last built for a model, and the tensors it was built from."""

    def __init__(self) -> None:
        self.decoder: Decoder | None = None
        self._library: Library | None = None
        self._tensors: list[tuple[Tensor, Tensor]] = []  # each with an alias that keeps its memory
        self._versions: list[tuple[int, int]] = []
        self._samples: list[Tensor] = []

    def __deepcopy__(self, _memo: Any) -> _DecoderCache:
        return _DecoderCache()

    def __reduce__(self) -> tuple[type[_DecoderCache], tuple[()]]:
        return _DecoderCache, ()

    def matches(self, model: Model, library: Library) -> bool:
        """Whether the decoder was built from exactly these tensors with their current values."""
        tensors = list(tensors_of(model))
        return (
            self._library is library
            and len(tensors) == len(self._tensors)
            and all(a is b for a, (b, _) in zip(tensors, self._tensors, strict=True))
            and [_version(tensor) for tensor in tensors] == self._versions
            and all(map(torch.equal, map(_sample, tensors), self._samples))
        )

    def replace(self, model: Model, library: Library, decoder: Decoder) -> None:
        """Remember this decoder."""
        tensors = list(tensors_of(model))
        self.decoder, self._library = decoder, library
        self._tensors = [(tensor, tensor.detach()) for tensor in tensors]
        self._versions = [_version(tensor) for tensor in tensors]
        self._samples = [_sample(tensor).clone() for tensor in tensors]


def _version(tensor: Tensor) -> tuple[int, int]:
    """Changes with every in-place operation but those on `.data` and those of fused optimizers."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> Tensor:
    """Elements spread over the tensor: they reveal an update that torch does not count."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLED)]


def decoder_of(model: Model) -> Decoder | None:
    """The compiled decoder of this model, or None where torch has to decode it.

    It is built once and kept with the model until a weight changes. A change of single elements
    through `.data`, which torch does not count, may go unnoticed: call `forget_decoder` then.
    """
    library = loader.load()
    if library is None or not can_decode(model):
        return None
    cache = vars(model).setdefault("_decoder_cache", _DecoderCache())
    if not cache.matches(model, library):
        specs = [mixer.decode_spec() for mixer in model.mixers]
        known = [spec for spec in specs if spec and _has_step(library, spec)]
        if len(known) < len(specs):
            return None
        with torch.no_grad():
            cache.replace(model, library, Decoder(model, known, library))
    decoder: Decoder | None = cache.decoder
    return decoder


def forget_decoder(model: Model) -> None:
    """Make the next `decoder_of` read the weights again."""
    vars(model).pop("_decoder_cache", None)


def _has_step(library: Library, spec: DecodeSpec) -> bool:
    return bool(library.lib.ys_mixer_kind(spec.kind.encode()) >= 0)
