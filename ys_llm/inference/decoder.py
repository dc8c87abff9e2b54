"""One call per token for a whole model: the tokens of one text, or the next one of many texts.

Torch takes a token in some forty operations a layer, which at one token cost more than their
arithmetic. The kernel `decode.cpp` reads each weight once and does the rest in between; what it
computes is what `model(tokens_BT, state)` does, the state included, so that either may go on where
the other stopped. It is there for models on the CPU whose mixer offers `decode_spec()`, see
`ops/decode_spec.py`, once it has been compiled (`loader.py`).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.model.language_model import Model
from ys_llm.model.layers import RMS_EPS
from ys_llm.model.state import State
from ys_llm.ops.decode_spec import DecodeSpec, LinearMap, linear_map
from ys_llm.ops.three_tier.types import EPS, Summary

MOST_TEXTS = 64  # that one call takes
_STATES = ("main", "local_summary", "global_summary")
_KINDS = {torch.bfloat16: 1, torch.int8: 2}
_TRY_EVERY = 64  # steps: at twice the time, every 64th costs 1.5 %
_Pointer = ctypes.c_void_p


class _Map(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("weight", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("n_in", "n_out", "n_groups", "kind")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("gain", _Pointer), ("bias", _Pointer))


class _Tier(ctypes.Structure):
    _fields_ = (
        *((name, _Map) for name in ("controller", "influencer", "shaper")),
        ("norm", _Norm),
        ("every", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("mixer_gain", "mlp_gain", "entry")),
        *((name, _Map) for name in ("in_map", "controller", "shaper", "out_map")),
        *((name, _Map) for name in ("gate", "up", "down")),
        ("norm", _Norm),
        ("tiers", _Tier * 2),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("embedding", "final_gain")),
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Map),
        *(
            (name, ctypes.c_int64)
            for name in ("n_layers", "d_model", "d_state", "d_mlp", "d_summary", "n_heads")
        ),
        ("rms_eps", ctypes.c_double),
        ("norm_eps", ctypes.c_double),
    )


@dataclass
class Text:
    """Where the model stands in one text: its states (layers x 3 x S) and the clock."""

    states: Tensor
    position: int


class _Pace:
    """Whether one thread or all of them are faster now.

    They wait for each other some thirty times in a token: where another process has one of the
    cores, all of them take ten times as long as one alone.
    """

    def __init__(self, most: int) -> None:
        self._seconds = {most: 0.0, 1: 0.0}
        self._steps = 0

    def threads(self) -> int:
        """The number that was faster of late; now and then the other, and first each of them."""
        self._steps += 1
        faster, *others = sorted(self._seconds, key=lambda threads: self._seconds[threads])
        return others[0] if others and self._steps % _TRY_EVERY == 0 else faster

    def took(self, threads: int, seconds: float) -> None:
        """A step on that many threads took this long."""
        before = self._seconds[threads]
        slower = 0 < before < seconds
        self._seconds[threads] = 0.75 * before + 0.25 * seconds if slower else seconds


class Decoder:
    """A model as the kernel takes it; its weights as they were when this was made."""

    def __init__(self, model: Model, kernel: ctypes.CDLL) -> None:
        self._kept: list[Tensor] = []
        self.bytes_per_token = 0.0  # of weights, those of summaries by their share of tokens
        self._dtype = model.embedding.weight.dtype
        blocks: list[Any] = list(model.blocks)
        plans = [spec for mixer in model.mixers if (spec := mixer.decode_spec()) is not None]
        self._vocab_size, self._shape = model.vocab_size, (len(blocks), 3, _d_state(plans[0]))
        self._layers = (_Layer * len(blocks))(*map(self._layer, blocks, plans))
        self._model = self._described(model, plans[0])
        self._step = kernel.ys_decode_f64 if self._dtype == torch.float64 else kernel.ys_decode_f32
        self._step.restype = None
        self._scratch_size = kernel.ys_decode_scratch
        self._scratch_size.restype = ctypes.c_int64
        self._scratch = torch.empty(0, dtype=self._dtype)
        self._pace = _Pace(torch.get_num_threads())

    def text(self, state: State) -> Text:
        """A text that stands where the state (of one row) does; the state itself stays as it is."""
        layers = state["layers"]
        rows = [layer[name][0] for layer in layers for name in _STATES]
        return Text(torch.stack(rows).view(self._shape), int(state["position_B"][0]))

    def state(self, text: Text) -> State:
        """The inverse of `text`."""
        layers = [
            {name: row.clone()[None] for name, row in zip(_STATES, rows, strict=True)}
            for rows in text.states
        ]
        return {"position_B": torch.tensor([text.position]), "layers": layers}

    def step(
        self, texts: Sequence[Text], ids: Sequence[int], *, threads: int | None = None
    ) -> Tensor:
        """Read one more token of each text (at most MOST_TEXTS); the logits after it, N x V.

        The texts are taken further in place. With AVX-512 each has the bits it would have alone, on
        any number of threads; elsewhere it is equal up to rounding. `threads` None: as many as were
        fastest of late.
        """
        n = len(texts)
        if not 0 < n <= MOST_TEXTS or n != len(ids):
            raise ValueError(f"expected 1 to {MOST_TEXTS} texts and as many ids, found {n}")
        if not all(0 <= id < self._vocab_size for id in ids):
            raise ValueError(f"ids {list(ids)} are not all below {self._vocab_size}")
        chosen = threads or self._pace.threads()
        logits_NV = torch.empty(n, self._vocab_size, dtype=self._dtype)
        integers, pointers = ctypes.c_int64 * n, _Pointer * n
        began = time.perf_counter()
        self._step(
            ctypes.byref(self._model),
            ctypes.c_int64(n),
            integers(*ids),
            integers(*(text.position for text in texts)),
            pointers(*(text.states.data_ptr() for text in texts)),
            _Pointer(logits_NV.data_ptr()),
            _Pointer(self._scratch_for(n, chosen).data_ptr()),
            ctypes.c_int64(chosen),
        )
        if threads is None:
            self._pace.took(chosen, time.perf_counter() - began)
        for text in texts:
            text.position += 1
        return logits_NV

    def _scratch_for(self, n: int, threads: int) -> Tensor:
        needed = self._scratch_size(
            ctypes.byref(self._model), ctypes.c_int64(n), ctypes.c_int64(threads)
        )
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed, dtype=self._dtype)
        return self._scratch

    def _described(self, model: Model, plan: DecodeSpec) -> _Model:
        weights = plan.recurrence
        tiers = [tier for tier in (weights.local_summary, weights.global_summary) if tier]
        final_gain = getattr(model.final_norm, "weight", None)
        return _Model(
            embedding=self._pointer(model.embedding.weight),
            final_gain=self._pointer(final_gain),
            layers=self._layers,
            head=self._map(linear_map(model.output)),
            n_layers=len(self._layers),
            d_model=model.config.d_model,
            d_state=_d_state(plan),
            d_mlp=model.config.d_mlp,
            d_summary=max((len(tier.gain) for tier in tiers), default=0),
            n_heads=weights.n_heads,
            rms_eps=RMS_EPS,
            norm_eps=EPS,
        )

    def _layer(self, block: Any, plan: DecodeSpec) -> _Layer:
        weights, no_map = plan.recurrence, _Map()
        mlp = getattr(block, "mlp", None)
        gain_of = {name: getattr(block, name, None) for name in ("mixer_norm", "mlp_norm")}
        gains = {name: norm and norm.weight for name, norm in gain_of.items()}
        summaries = [tier for tier in (weights.local_summary, weights.global_summary) if tier]
        shaper, every = weights.output_shaper, min((tier.every for tier in summaries), default=0)
        return _Layer(
            mixer_gain=self._pointer(gains["mixer_norm"]),
            mlp_gain=self._pointer(gains["mlp_norm"]),
            entry=self._pointer(weights.entry),
            in_map=self._map(plan.in_map),
            controller=self._matrix(weights.state_controller),
            shaper=no_map if shaper is None or not every else self._matrix(shaper, every=every),
            out_map=self._map(plan.out_map),
            gate=self._map(linear_map(mlp.gate)) if mlp else no_map,
            up=self._map(linear_map(mlp.up)) if mlp else no_map,
            down=self._map(linear_map(mlp.down)) if mlp else no_map,
            norm=_Norm(self._pointer(weights.gain), self._pointer(weights.bias)),
            tiers=(_Tier * 2)(
                self._tier(weights.local_summary), self._tier(weights.global_summary)
            ),
        )

    def _tier(self, summary: Summary | None) -> _Tier:
        if summary is None:
            return _Tier()
        return _Tier(
            controller=self._matrix(summary.state_controller, every=summary.every),
            influencer=self._matrix(summary.input_influencer, every=summary.every),
            shaper=self._matrix(summary.output_shaper, every=summary.every),
            norm=_Norm(self._pointer(summary.gain), self._pointer(summary.bias)),
            every=summary.every,
            width=len(summary.gain),
        )

    def _matrix(self, matrix: Tensor, *, every: int = 1) -> _Map:
        """x -> x matrix; in blocks where the matrix has three dimensions (heads)."""
        rows = matrix.detach().transpose(-2, -1).reshape(-1, matrix.shape[-2])
        groups = 1 if matrix.dim() == 2 else len(matrix)
        return self._map(LinearMap(rows), n_groups=groups, every=every)

    def _map(self, linear: LinearMap, *, n_groups: int = 1, every: int = 1) -> _Map:
        """The map as the kernel takes it, which uses it at one token in `every`."""
        self.bytes_per_token += linear.weight.nbytes / every
        return _Map(
            weight=self._pointer(linear.weight),
            scales=self._pointer(linear.scales),
            bias=self._pointer(linear.bias),
            n_in=linear.weight.shape[1],
            n_out=linear.weight.shape[0],
            n_groups=n_groups,
            kind=_KINDS.get(linear.weight.dtype, 0),
        )

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()


def decoder_of(model: Model) -> Decoder | None:
    """A decoder for this model, or None where torch has to take its tokens.

    That is where the kernel is not compiled, where the model is not on the CPU or its mixer has no
    `decode_spec`, and where someone listens to its modules (hooks), which only torch would call.
    """
    kernel = loader.ready("decode")
    if kernel is None or any(mixer.decode_spec() is None for mixer in model.mixers):
        return None
    dtypes = {parameter.dtype for parameter in model.parameters()}
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if not on_cpu or dtypes not in ({torch.float32}, {torch.float64}) or _has_listeners(model):
        return None
    with torch.no_grad():
        return Decoder(model, kernel)


def _has_listeners(model: Model) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _d_state(plan: DecodeSpec) -> int:
    return len(plan.recurrence.gain)
