"""The float32 matmul kernels against torch in float64: values, layouts, threads, and their use."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ys_llm.csrc import loader
from ys_llm.ops import cross_entropy, matmul, swiglu, weight_grad

pytestmark = pytest.mark.skipif(loader.build() is None, reason="there is no compiled library")
# Rows, K, M: whole blocks, parts of blocks and panels, more of k than stays in a cache.
SHAPES = ((256, 64, 64), (301, 39, 70), (7, 5, 3), (97, 1500, 33), (1030, 12, 257))
TOLERANCE = 1e-5  # of the largest entry


def _numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rows, k, m", SHAPES)
def test_the_kernels_equal_float64(rows: int, k: int, m: int) -> None:
    x_NK, w_KM, dy_NM = (_numbers(*s, seed=i) for i, s in enumerate([(rows, k), (k, m), (rows, m)]))
    assert _error(matmul.cpp(x_NK, w_KM), x_NK.double() @ w_KM.double()) < TOLERANCE
    expected = x_NK.double().t() @ dy_NM.double()
    assert _error(weight_grad.cpp_f32(x_NK, dy_NM), expected) < TOLERANCE


def test_rows_may_lie_apart_and_the_matrix_may_be_transposed() -> None:
    x_NK, dy_NM = _numbers(300, 90, seed=0)[:, 5:75], _numbers(300, 50, seed=1)[:, :40]
    w_KM = _numbers(40, 70, seed=2).t()
    assert _error(matmul.cpp(x_NK, w_KM), x_NK.double() @ w_KM.double()) < TOLERANCE
    expected = x_NK.double().t() @ dy_NM.double()
    assert _error(weight_grad.cpp_f32(x_NK, dy_NM), expected) < TOLERANCE


def test_the_result_does_not_depend_on_threads(threads_as_they_were: None) -> None:
    x_NK, w_KM, dy_NM = (
        _numbers(1000, 70, seed=0),
        _numbers(70, 90, seed=1),
        _numbers(1000, 90, seed=2),
    )
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((matmul.cpp(x_NK, w_KM), weight_grad.cpp_f32(x_NK, dy_NM)))
    for alone, together in zip(*results, strict=True):
        assert torch.equal(alone, together)


def test_the_gradient_of_pieces_is_the_sum_of_theirs() -> None:
    x_NK, dy_NM = _numbers(700, 39, seed=0), _numbers(700, 70, seed=1)
    total = weight_grad.SumF32(39, 70)
    for part in (slice(0, 256), slice(256, 699), slice(699, 700)):
        total.add(x_NK[part], dy_NM[part])
    assert _error(total.total(), x_NK.double().t() @ dy_NM.double()) < TOLERANCE


def _with_gradients(op: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
    y = op(*tensors)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def _cross_entropy(backend: str) -> Callable[..., Tensor]:
    def op(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        return cross_entropy.BACKENDS[backend](x_ND, weight_VD, None, targets_N)

    return op


@pytest.mark.parametrize("op", ["swiglu", "cross_entropy"])
def test_swiglu_and_the_head_multiply_by_the_kernels(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if op == "swiglu":
        ours, reference = swiglu.cpp, swiglu.reference
        shapes: list[tuple[int, ...]] = [(2, 301, 70), (90, 70), (90, 70), (70, 90)]
        more = []
    else:
        ours, reference = _cross_entropy("cpp"), _cross_entropy("reference")
        monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 256 * 97)  # 256 + 256 + 90 rows
        shapes, more = [(602, 70), (97, 70)], [torch.arange(602) % 97]
    tensors = [_numbers(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = _with_gradients(reference, *(tensor.double() for tensor in tensors), *more)
    monkeypatch.setattr(matmul, "_is_amd", lambda: True)
    monkeypatch.setattr(Tensor, "__matmul__", _not_called)
    monkeypatch.setattr(torch, "mm", _not_called)
    found = _with_gradients(ours, *tensors, *more)
    assert max(map(_error, found, expected)) < TOLERANCE


def _not_called(*arguments: object, **options: object) -> Tensor:
    raise AssertionError("torch multiplied")


def test_a_nan_stays_in_its_row_of_the_result_and_spreads_over_its_row_of_the_gradient() -> None:
    x_NK, w_KM, dy_NM = (
        _numbers(300, 64, seed=0),
        _numbers(64, 64, seed=1),
        _numbers(300, 64, seed=2),
    )
    x_NK[7, 3] = float("nan")
    assert matmul.cpp(x_NK, w_KM).isnan().any(1).nonzero().flatten().tolist() == [7]
    assert weight_grad.cpp_f32(x_NK, dy_NM).isnan().any(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("is_amd", [True, False])
def test_torch_multiplies_where_the_kernel_has_not_been_measured(
    is_amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "_is_amd", lambda: is_amd)
    x_NK, w_KM = _numbers(300, 64, seed=0), _numbers(64, 64, seed=1)
    assert matmul.kernel_pays(x_NK, w_KM, w_KM.numel()) == is_amd
    assert not matmul.kernel_pays(x_NK[:10], w_KM, w_KM.numel())
    assert not matmul.kernel_pays(x_NK.bfloat16(), w_KM.bfloat16(), w_KM.numel())
    assert not matmul.kernel_pays(_numbers(64, 300, seed=0).t(), w_KM, w_KM.numel())
