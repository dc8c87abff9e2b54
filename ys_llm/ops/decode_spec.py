"""What a mixer must say of itself so that one call can take a whole model one token further.

A mixer that is a linear map, the three-tier recurrence and a linear map offers `decode_spec()`,
which gives a `DecodeSpec`; chains of linear maps are folded into one by then, which changes no
result but in its rounding. Another mixer has no such method, and torch takes its tokens.
"""

from typing import NamedTuple

from torch import Tensor, nn

from ys_llm.model.quantize import QuantizedLinear
from ys_llm.ops.three_tier.types import Weights


class LinearMap(NamedTuple):
    """x -> x weight^T + bias; the weight is n_out x n_in, as nn.Linear has it.

    A weight in int8 counts `scales`, one for each row.
    """

    weight: Tensor
    bias: Tensor | None = None
    scales: Tensor | None = None


class DecodeSpec(NamedTuple):
    """o = out_map(h), h being the recurrence's with the drive in_map(x)."""

    in_map: LinearMap
    recurrence: Weights
    out_map: LinearMap


def linear_map(linear: nn.Linear) -> LinearMap:
    """This layer, in the fewest bytes that hold it."""
    if isinstance(linear, QuantizedLinear):
        return LinearMap(linear.narrow, linear.bias, linear.scales)
    return LinearMap(linear.weight, linear.bias)


def map_then_matrix(linear: nn.Linear, matrix: Tensor) -> LinearMap:
    """x -> linear(x) matrix as one map."""
    bias = None if linear.bias is None else linear.bias @ matrix
    return LinearMap(matrix.t() @ linear.weight, bias)


def matrix_then_map(matrix: Tensor, linear: nn.Linear) -> LinearMap:
    """x -> linear(x matrix) as one map."""
    return LinearMap(linear.weight @ matrix.t(), linear.bias)
