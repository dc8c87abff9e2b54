"""A linear layer over many rows, with the weight gradient of `weight_grad`.

y = x W^T + b;   dx = dy W;   dW = dy^T x          x: ... x K, W: M x K

`linear` takes a module, not a weight: a module that is anything more than a plain nn.Linear (an
adapter around it, a forward hook, a parametrisation, a quantised layer) is called as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ys_llm.ops.matmul import matmul
from ys_llm.ops.precision import compute_dtype
from ys_llm.ops.weight_grad import weight_grad


def is_plain(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether calling `module` does what its class does with its own weight and nothing else.

    A parametrised module has another class; a hook or a replaced `forward` may do anything. Only
    hooks with `observes_only = True` set on them do not count: where a module is not called, they
    are not called either.
    """
    if type(module) is not kind or "forward" in vars(module):
        return False
    if type(module.weight) is not nn.Parameter:  # a distributed weight, or one that is swapped in
        return False
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    )
    return all(getattr(hook, "observes_only", False) for hook in hooks)


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), by `fused_backward` where the module is a plain nn.Linear."""
    y, bias = linear_without_bias(module, x)
    return y if bias is None else y + bias


def linear_without_bias(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """As `linear`, but returns the bias for the caller to add; None: there is nothing to add."""
    if is_plain(module):
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        return fused_backward(x, weight), bias
    y: Tensor = module(x)
    return y, None


def side_by_side(modules: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """`linear` of each module; where all are plain, as one product, which reads x once."""
    if not all(map(is_plain, modules)):
        return [linear(module, x) for module in modules]
    joined, biases = joined_without_bias(modules, x)
    weights: list[Any] = [module.weight for module in modules]
    parts = joined.split([len(weight) for weight in weights], -1)
    return [y if bias is None else y + bias for y, bias in zip(parts, biases, strict=True)]


def joined_without_bias(
    modules: Sequence[nn.Module], x: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """As `side_by_side`, in one tensor, with the biases that the caller has to add."""
    if all(map(is_plain, modules)):
        weights: list[Any] = [module.weight for module in modules]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        return fused_backward(x, weight), [cast(Any, module).bias for module in modules]
    parts, biases = zip(*(linear_without_bias(module, x) for module in modules), strict=True)
    return torch.cat(parts, -1), list(biases)


def reference(x: Tensor, weight_MK: Tensor) -> Tensor:
    """x W^T; under autocast in its dtype."""
    return torch.nn.functional.linear(x, weight_MK)


def fused_backward(x: Tensor, weight_MK: Tensor) -> Tensor:
    """As `reference`; the gradient of the weight keeps the dtype in which it was summed."""
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Linear.apply(x.to(dtype), weight_MK)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x W^T."""
        x_NK, weight_used = x.reshape(-1, x.shape[-1]), weight.to(x.dtype)
        ctx.save_for_backward(x_NK, weight_used)
        ctx.dtype, ctx.shape = weight.dtype, x.shape
        return matmul(x_NK, weight_used.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """dx and dW, each where it is needed."""
        x_NK, weight_used = ctx.saved_tensors
        dy_NM = grads[0].reshape(-1, grads[0].shape[-1])
        d_x = matmul(dy_NM, weight_used).view(ctx.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:  # frozen, as under an adapter
            return d_x, None
        return d_x, weight_grad(dy_NM, x_NK).to(ctx.dtype)


BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "fused_backward": fused_backward,
}
