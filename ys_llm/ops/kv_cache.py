"""The keys and values of attention, kept from call to call.

They are padded on the left where rows have read texts of different lengths. Every key has the
number of its document, from 1; 0 is padding, which no query belongs to.
"""

import torch
from torch import Tensor

from ys_llm.ops.shared_by_layers import shared_by_layers


def append(past: Tensor, new: Tensor) -> Tensor:
    """All of them, in time's order."""
    return torch.cat([past.to(new.dtype), new], dim=1) if past.shape[1] else new


def kept(n_keys: int, n_tokens: int, position_B: Tensor, window: int) -> slice:
    """Those that a later query may see: in view, and read by the row that has read most."""
    n_read = int(position_B.max()) + n_tokens
    return slice(max(first_kept(n_keys, window), n_keys - n_read), None)


def first_kept(n_keys: int, window: int) -> int:
    """The oldest key that the next query sees; window 0 = all."""
    # The next token is itself one of the window: window - 1 older ones remain in its view.
    return max(0, n_keys - (window - 1)) if window else 0


def pairs(seq_len: int, window: int) -> int:
    """How many keys the first `seq_len` queries see together."""
    seen = min(window or seq_len, seq_len)
    return seen * (seen + 1) // 2 + (seq_len - seen) * seen


def documents(past_BN: Tensor, starts_BT: Tensor | None, n_tokens: int) -> Tensor:
    """The documents of past and new tokens; without a past the same tensor for every layer."""
    if not past_BN.shape[1]:
        if starts_BT is None:
            return past_BN.new_ones(len(past_BN), 1).expand(-1, n_tokens)
        return _first(starts_BT)
    last_B1 = past_BN[:, -1:].clamp_min(1)  # 0 where the row has read nothing: padding alone
    if starts_BT is None:
        return torch.cat([past_BN, last_B1.expand(-1, n_tokens)], dim=1)
    return torch.cat([past_BN, last_B1 + starts_BT.cumsum(dim=1, dtype=torch.int32)], dim=1)


@shared_by_layers
def _first(starts_BT: Tensor) -> Tensor:
    return 1 + starts_BT.cumsum(dim=1, dtype=torch.int32)
