"""A causal depthwise convolution over the latest tokens, within documents, added to its input.

    y_t = x_t + sum_j w_j x_{t-j}     over 1 <= j <= K where t - j is of t's own document

    dx_s = dy_s + sum_j w_j dy_{s+j};   dw_j = sum_t dy_t x_{t-j}     over the same pairs

With w = 0 it is the identity. x_t has no weight of its own: what reads y scales its channels.
Row K - j of `weight_KD` is w_j, as in `past_BKD`, the K inputs before the first: the latest is the
last, and 0 stands for those of other documents and for none. Every backend returns y and the
`past_BKD` of the next call. `starts_BT` marks first tokens of documents.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ys_llm.ops import rowwise


def convolution(
    x_BTD: Tensor, weight_KD: Tensor, past_BKD: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_BTD, in the dtype of x, and the last inputs, by the compiled kernel where there is one."""
    op = cpp if rowwise.is_available(x_BTD) and rowwise.is_available(weight_KD) else shifted
    return op(x_BTD, weight_KD, past_BKD, starts_BT)


def short_convolution(
    x_BTD: Tensor,
    taps_WD: Tensor,
    bias_D: Tensor | None,
    past_BKD: Tensor,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum_j w_j x_{t-j} over 0 <= j < W, and the last W - 1 inputs.

    Row W - 1 - j of `taps_WD` is w_j: x_t has a weight here.
    """
    sum_BTD, past_BKD = convolution(x_BTD, taps_WD[:-1], past_BKD, starts_BT)
    y_BTD = sum_BTD + x_BTD * (taps_WD[-1] - 1)
    return (y_BTD if bias_D is None else y_BTD + bias_D), past_BKD


def reference(
    x_BTD: Tensor, weight_KD: Tensor, past_BKD: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The equation, token by token."""
    outputs = []
    for t, x_BD in enumerate(x_BTD.unbind(1)):
        if starts_BT is not None:
            past_BKD = past_BKD.masked_fill(starts_BT[:, t, None, None], 0)
        outputs.append((x_BD + (past_BKD * weight_KD).sum(1)).to(x_BD.dtype))
        past_BKD = torch.cat([past_BKD[:, 1:], x_BD[:, None].to(past_BKD.dtype)], 1)
    return torch.stack(outputs, 1), past_BKD


def shifted(
    x_BTD: Tensor, weight_KD: Tensor, past_BKD: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `reference`: all tokens at once, shifted by 1, by 2, ..."""
    n_tokens, n_earlier = x_BTD.shape[1], len(weight_KD)
    reach_BT = None if starts_BT is None else _reach(starts_BT, n_earlier)
    all_BND, sum_BTD = torch.cat([past_BKD.to(x_BTD.dtype), x_BTD], 1), x_BTD
    for j in range(1, n_earlier + 1):
        earlier_BTD = all_BND[:, n_earlier - j : n_earlier - j + n_tokens]
        if reach_BT is not None:
            earlier_BTD = earlier_BTD.masked_fill((reach_BT < j).unsqueeze(2), 0)
        sum_BTD = sum_BTD + earlier_BTD * weight_KD[n_earlier - j]
    return sum_BTD.to(x_BTD.dtype), _last_inputs(x_BTD, past_BKD, reach_BT)


def cpp(
    x_BTD: Tensor, weight_KD: Tensor, past_BKD: Tensor, starts_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `shifted`, in one pass over memory each way."""
    n_earlier = len(weight_KD)
    reach_BT = None if starts_BT is None else _reach(starts_BT, n_earlier)
    if not rowwise.supports("convolution", x_BTD.dtype, weight_KD.dtype):
        return shifted(x_BTD, weight_KD, past_BKD, starts_BT)
    past = past_BKD.to(weight_KD.dtype)
    y_BTD: Tensor = _Compiled.apply(x_BTD, weight_KD, past, reach_BT)  # type: ignore[no-untyped-call]
    return y_BTD, _last_inputs(x_BTD, past_BKD, reach_BT)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, past: Tensor, reach: Tensor | None) -> Tensor:
        """y, in the memory order of x."""
        x, weight, past = rowwise.dense(x), weight.contiguous(), past.contiguous()
        ctx.save_for_backward(x, weight, past, reach)
        return rowwise.convolution_forward(x, weight, past, reach)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of x, the weight and the inputs before."""
        x, weight, past, reach = ctx.saved_tensors
        d_y = rowwise.match_layout(grads[0], x)
        return *rowwise.convolution_backward(d_y, x, weight, past, reach), None


def _reach(starts_BT: Tensor, n_earlier: int) -> Tensor:
    """B x T in int32: how many tokens before each one are of its document, at most n_earlier.

    All of them where the document has begun before the first token: `past_BKD` has zeros then.
    """
    t_T = torch.arange(starts_BT.shape[1], device=starts_BT.device, dtype=torch.int32)
    start_BT = t_T.where(starts_BT, -n_earlier).cummax(1).values
    return (t_T - start_BT).clamp_max(n_earlier).to(torch.int32).contiguous()


def _last_inputs(x_BTD: Tensor, past_BKD: Tensor, reach_BT: Tensor | None) -> Tensor:
    """The `past_BKD` after the last token."""
    n_earlier = past_BKD.shape[1]
    latest = x_BTD[:, -n_earlier:].to(past_BKD.dtype)
    last_BKD = torch.cat([past_BKD[:, latest.shape[1] :], latest], 1)
    if reach_BT is None:
        return last_BKD
    age_K = torch.arange(n_earlier - 1, -1, -1, device=reach_BT.device)
    return last_BKD.masked_fill((age_K > reach_BT[:, -1:]).unsqueeze(2), 0)


BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference,
    "shifted": shifted,
    "cpp": cpp,
}
