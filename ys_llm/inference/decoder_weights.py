"""A model's weights as the structs of `csrc/api.h`, and whether the compiled decoder applies.

The compiled step computes what the modules' `forward` does, without calling it. So a module that
was wrapped, hooked, replaced or parametrised makes `can_decode` false, and torch decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ys_llm.csrc.loader import Library
from ys_llm.mixers.protocol import Chain, DecodeSpec, Matrix
from ys_llm.model.copy_tier import CopyTier
from ys_llm.model.extra_heads import ExtraHeads
from ys_llm.model.initial_state import InitialState
from ys_llm.model.language_model import Model
from ys_llm.model.layers import RMS_EPS, Block, Identity, PlainBlock, RMSNorm, SwiGLU
from ys_llm.model.quantize import QuantizedLinear
from ys_llm.ops.dropout import Dropout

_KNOWN_MODULES = (
    *(Model, Block, PlainBlock, RMSNorm, SwiGLU, Identity, Dropout, QuantizedLinear, CopyTier),
    *(ExtraHeads, InitialState),
    *(nn.Embedding, nn.Linear, nn.LayerNorm, nn.ModuleList, nn.ParameterList),
)
_MIXERS = "ys_llm.mixers."


def can_decode(model: Model) -> bool:
    """Whether the compiled step computes what calling this model would, given steps for its mixers.

    It does for models on the CPU in float32 or float64 whose modules are all as this package builds
    them; a copy tier has a sentinel and keeps the latest tokens. Hooks with `observes_only = True`
    do not count, see `ops.linear.is_plain`.
    """
    tensors, tier = list(tensors_of(model)), model.copy_tier
    quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return (
        not (_global_forward_hooks or _global_forward_pre_hooks)
        and (tier is None or (tier.has_sentinel and tier.room is None))
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and dtypes in ([{torch.float32}] if quantized else [{torch.float32}, {torch.float64}])
        and all(_is_unmodified(module) for module in model.modules())
    )


def tensors_of(model: Model) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def _is_unmodified(module: nn.Module) -> bool:
    """Whether this module is of a known class, not a subclass, and nothing is attached to it."""
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
    )
    is_known = type(module) in _KNOWN_MODULES or type(module).__module__.startswith(_MIXERS)
    is_observed = all(getattr(hook, "observes_only", False) for hook in hooks)
    return is_known and is_observed and "forward" not in vars(module)


class WeightStructs:
    """A `struct ys_decode_model` and everything that it points to.

    `bytes_per_token`: bytes of weights read per token; those used at some tokens only count on
    average. `panel`: rows of a weight that are packed together.
    """

    def __init__(self, model: Model, specs: list[DecodeSpec], library: Library) -> None:
        self._library, self._ffi = library, library.ffi
        self._kept: list[Any] = []
        self._formats = {torch.bfloat16: library.lib.YS_BF16, torch.int8: library.lib.YS_INT8}
        self.bytes_per_token = 0.0
        is_double = model.embedding.weight.dtype == torch.float64
        operands = library.lib.YS_F64 if is_double else library.lib.YS_F32
        self.panel = int(library.lib.ys_decode_panel(operands))
        layers = [self._layer(*pair) for pair in zip(model.applied, specs, strict=True)]
        self.struct = self._ffi.new(
            "struct ys_decode_model *",
            {
                "embedding": self._pointer(model.embedding.weight),
                "final_gain": self._gain(model.final_norm),
                "layers": self._keep(self._ffi.new("struct ys_decode_layer[]", layers)),
                "head": self._linear(model.output),
                "copy": self._copying(model.copy_tier),
                "n_layers": len(layers),
                "d_model": model.config.d_model,
                "rms_eps": RMS_EPS,
            },
        )

    def state_size(self, layer: int) -> int:
        """Elements of the compiled step's state of one sequence in this layer."""
        struct = self.struct.layers[layer]
        return int(self._library.lib.ys_mixer_state_size(struct.mixer_kind, struct.mixer))

    def _layer(self, block: Any, spec: DecodeSpec) -> dict[str, Any]:
        mixer = self._ffi.new(f"struct ys_{spec.kind}_weights *", self._fields(spec.weights))
        fields = {
            "mixer_kind": self._library.lib.ys_mixer_kind(spec.kind.encode()),
            "mixer": self._keep(mixer),
        }
        if isinstance(block, PlainBlock):
            return fields
        fields["mixer_gain"] = self._gain(block.mixer_norm)
        if block.has_mlp:
            fields["mlp_gain"] = self._gain(block.mlp_norm)
            for name in ("gate", "up", "down"):
                fields[name] = self._linear(getattr(block.mlp, name))
        return fields

    def _copying(self, tier: CopyTier | None) -> Any:
        if tier is None:
            return self._ffi.NULL
        names = ("query", "key", "token_key", "gate")
        fields = {name: self._linear(getattr(tier, name)) for name in names}
        struct = self._ffi.new("struct ys_copy_weights *", {**fields, "slots": tier.window})
        return self._keep(struct)

    def _gain(self, norm: nn.Module) -> Any:
        return self._pointer(norm.weight) if isinstance(norm, RMSNorm) else self._ffi.NULL

    def _fields(self, value: Any) -> Any:
        """A value of `DecodeSpec.weights` as cffi expects it to initialise a field."""
        if isinstance(value, nn.Module | Matrix | Chain):
            return self._linear(value)
        if isinstance(value, Tensor):
            return self._pointer(value)
        if isinstance(value, dict):
            return {name: self._fields(item) for name, item in value.items() if item is not None}
        if isinstance(value, list):
            return [{} if item is None else self._fields(item) for item in value]
        return value

    def _linear(self, value: Any) -> dict[str, Any]:
        """The fields of a `struct ys_linear`."""
        interval, n_groups, scales = 1, 1, None
        if isinstance(value, Matrix):
            matrix, interval = value
            weight, bias = matrix.transpose(-2, -1).reshape(-1, matrix.shape[-2]), None
            n_groups = 1 if matrix.dim() == 2 else len(matrix)
        elif isinstance(value, Chain):
            weight, bias = folded(value)
        elif isinstance(value, QuantizedLinear):
            weight, bias, scales = value.quantized, value.bias, value.scales
        else:
            weight, bias = value.weight, value.bias
        self.bytes_per_token += weight.nbytes / interval
        return {
            "weight": self._pointer(packed(weight, n_groups, self.panel)),
            "scales": self._pointer(scales),
            "bias": self._pointer(bias),
            "n_in": weight.shape[1],
            "n_out": weight.shape[0],
            "n_groups": n_groups,
            "format": self._formats.get(weight.dtype, self._library.lib.YS_REAL),
        }

    def _pointer(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return self._ffi.NULL
        return self._library.pointer(self._keep(tensor.detach().contiguous()))

    def _keep(self, value: Any) -> Any:
        self._kept.append(value)
        return value


def packed(weight: Tensor, n_groups: int, width: int) -> Tensor:
    """The rows of each group in panels of `width`, column by column, the last padded with zeros."""
    n_in = weight.shape[1]
    grouped = weight.reshape(n_groups, -1, n_in)
    padding = -grouped.shape[1] % width
    panels = nn.functional.pad(grouped, (0, 0, 0, padding)).reshape(-1, width, n_in)
    return panels.transpose(1, 2).contiguous()


def folded(chain: Chain) -> tuple[Tensor, Tensor | None]:
    """Weight (n_out x n_in) and bias of the one linear map that a chain amounts to."""
    first, second = chain
    if isinstance(second, Tensor):  # a module, then a matrix
        weight, bias = _weight_and_bias(first)
        return second.t() @ weight, None if bias is None else bias @ second
    weight, bias = _weight_and_bias(second)
    assert isinstance(first, Tensor)
    return weight @ first.t(), bias


def _weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    return module.weight, module.bias
