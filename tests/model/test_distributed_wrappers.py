"""Distributed training wraps the model: its one entry is all that DDP and FSDP need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ys_llm.config.schema import ModelConfig
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.language_model import Model

V = 30
TOKENS_BT, TARGETS_BT = torch.randint(V, (2, 2, 40), generator=torch.Generator().manual_seed(4))

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


@pytest.fixture
def one_process() -> Iterator[None]:
    """A group of one: the wrappers do all that they do among many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model_of() -> Model:
    torch.manual_seed(0)
    names = tuple(mixer_names())
    config = ModelConfig(d_model=16, n_layers=len(names), d_mlp=24, layers=names)
    return Model(config, vocab_size=V)


def gradients_of(model: Any) -> dict[str, Tensor]:
    loss, _ = model(TOKENS_BT, targets_BT=TARGETS_BT)
    loss.backward()
    return {
        name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()
    }


def test_ddp_reduces_the_gradient_of_every_parameter(one_process: None) -> None:
    def doubled(_: object, bucket: Any) -> Any:
        future: Any = torch.futures.Future()
        future.set_result(2 * bucket.buffer())
        return future

    # DDP reads the annotations, which are text in this file.
    doubled.__annotations__ = {
        "bucket": dist.GradBucket,
        "return": torch.futures.Future[Tensor],
    }
    model = DistributedDataParallel(model_of())
    model.register_comm_hook(None, doubled)  # in the place of the mean over all ranks
    found, expected = gradients_of(model), gradients_of(model_of())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], 2 * gradient, msg=name)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # nothing is in place
def test_fsdp_gathers_every_weight_before_it_is_read(one_process: None) -> None:
    mesh = dist.init_device_mesh("cpu", (1,))
    model: Any = model_of()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found, expected = gradients_of(model), gradients_of(model_of())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        sharded: Any = found[name]
        torch.testing.assert_close(sharded.full_tensor(), gradient, msg=name)
