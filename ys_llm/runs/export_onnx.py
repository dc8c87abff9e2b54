"""A model as ONNX: one graph that reads a token, and one that reads a text by the same nodes.

    step.onnx      token (B), state.* -> logits (B x V), next.*
    prefill.onnx   tokens (B x T), state.* -> logits (B x T x V), next.*
    weights.bin    of both

`next.X` of one call is `state.X` of the next, and zeros stand before the first token. The second
graph is a loop over the first one's nodes, so that both give the same numbers, and any model that
has a step has a prefill. The batch and the length are free; caches of attention grow from length 0.
"""

import logging
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.errors import UserError
from ys_llm.model.exported import Network
from ys_llm.system.files import readable_os_errors, sync_folder

_WEIGHTS = "weights.bin"
_EXAMPLE_BATCH, _EXAMPLE_KEYS = 2, 3  # any that are neither 0 nor 1, which a trace would keep
_EMBEDDED_BYTES = 1024  # smaller tensors stay in the graphs


class _Step(nn.Module):
    """One token, with the state as a list."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net, self.names = net, list(net.shapes())

    def forward(self, token_B: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """Logits, B x V, and the next state."""
        before = dict(zip(self.names, state, strict=True))
        logits_BTV, after = self.net(token_B[:, None], before)
        return logits_BTV[:, -1], *(after[name] for name in self.names)


def write_graphs(net: Network, folder: Path) -> None:
    """Write step.onnx, prefill.onnx and their weights into a new folder."""
    onnx = import_onnx()
    step = _traced(net)
    onnx.external_data_helper.convert_model_to_external_data(
        step, location=_WEIGHTS, size_threshold=_EMBEDDED_BYTES
    )
    with readable_os_errors(folder):
        onnx.save(step, folder / "step.onnx")  # and the weights; what remains are references
        step = onnx.load(folder / "step.onnx", load_external_data=False)
        onnx.save(_loop(step, list(net.shapes()), onnx), folder / "prefill.onnx")
    for name in ("step.onnx", "prefill.onnx"):
        onnx.checker.check_model(str(folder / name))
    # The library makes the weights readable for their owner alone.
    (folder / _WEIGHTS).chmod(stat.S_IMODE((folder / "step.onnx").stat().st_mode))
    for path in folder.iterdir():
        sync_folder(path)  # which syncs a file as well


def import_onnx() -> Any:
    """The library, with what torch needs for it; UserError says how to install them."""
    try:
        import onnx
        import onnx.external_data_helper
        import onnxscript  # noqa: F401 - torch.onnx does not work without it
    except ImportError as error:
        raise UserError(
            f"--to onnx needs the package {error.name}, which is not installed",
            'Type: pip install "ys_llm[export]"',
        ) from error
    return onnx


def _traced(net: Network) -> Any:
    """The graph of one step."""
    names, shapes = list(net.shapes()), net.shapes()
    example = net.init_state(_EXAMPLE_BATCH)
    grown = [name for name, shape in shapes.items() if shape[:1] == (0,)]
    for name in grown:
        like, shape = example[name], shapes[name]
        example[name] = like.new_ones(_EXAMPLE_BATCH, _EXAMPLE_KEYS, *shape[1:])
    batch, n_keys = torch.export.Dim("batch"), torch.export.Dim("n_keys")
    sizes = [{0: batch, 1: n_keys} if name in grown else {0: batch} for name in names]
    token_B = torch.zeros(_EXAMPLE_BATCH, dtype=torch.int64)
    with _quiet():
        program = torch.onnx.export(
            _Step(net).eval(),
            (token_B, [example[name] for name in names]),
            input_names=["token", *(f"state.{name}" for name in names)],
            output_names=["logits", *(f"next.{name}" for name in names)],
            dynamic_shapes=({0: batch}, sizes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what torch's exporter says about itself."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _loop(step: Any, names: list[str], onnx: Any) -> Any:
    """The graph of a text: a loop over the tokens whose body is the step."""
    step = onnx.compose.add_prefix(step, "step.")
    make, types, graph = onnx.helper, onnx.TensorProto, step.graph
    states, ends = [f"state.{name}" for name in names], [f"next.{name}" for name in names]
    body = make.make_graph(
        [
            make.make_node("Gather", ["tokens", "i"], ["step.token"], axis=1),
            *graph.node,
            make.make_node("Identity", ["go"], ["goes on"]),
        ],
        "read a token",
        [
            make.make_tensor_value_info("i", types.INT64, []),
            make.make_tensor_value_info("go", types.BOOL, []),
            *graph.input[1:],
        ],
        [
            make.make_tensor_value_info("goes on", types.BOOL, []),
            *graph.output[1:],
            graph.output[0],
        ],
    )
    tokens = make.make_tensor_value_info("tokens", types.INT64, ["batch", "length"])
    logits = make.make_tensor_value_info("logits", types.FLOAT, ["batch", "length", "vocab"])
    inputs = [_renamed(x, name) for x, name in zip(graph.input[1:], states, strict=True)]
    outputs = [_renamed(x, name) for x, name in zip(graph.output[1:], ends, strict=True)]
    nodes = [
        make.make_node("Shape", ["tokens"], ["n"], start=1, end=2),
        make.make_node("Squeeze", ["n"], ["n tokens"]),
        make.make_node("Loop", ["n tokens", "", *states], [*ends, "by token"], body=body),
        make.make_node("Transpose", ["by token"], ["logits"], perm=[1, 0, 2]),
    ]
    whole = make.make_graph(
        nodes, "read a text", [tokens, *inputs], [logits, *outputs], graph.initializer
    )
    made = make.make_model(whole, opset_imports=step.opset_import, ir_version=step.ir_version)
    made.functions.extend(step.functions)
    return made


def _renamed(info: Any, name: str) -> Any:
    copied = type(info)()
    copied.CopyFrom(info)
    copied.name = name
    return copied
