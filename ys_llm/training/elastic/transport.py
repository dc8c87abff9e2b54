"""How a replica that joins is given the state of another: safetensors over HTTP.

torchft's own way pickles, and what it receives could run code. Here tensors are safetensors and all
else is JSON. Whoever reaches the port can read the weights, so it belongs on a private network.
"""

import json
import threading
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

_TREE = "tree"  # the tensor that holds the JSON


def packed(state: Any) -> bytes:
    """A tree of mappings, lists, plain values and tensors as one safetensors file."""
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_described(state, tensors)).encode()
    tensors[_TREE] = torch.frombuffer(bytearray(described), dtype=torch.uint8)
    return safetensors.torch.save(tensors)


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON with the numbers of tensors in place of them; they are put into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # pairs: JSON has no names but texts
        return {"pairs": [[key, _described(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_described(inner, tensors) for inner in value]}
    return value


def unpacked(data: bytes) -> Any:
    """The tree again; tuples are lists. ValueError or SafetensorError for other bytes."""
    tensors = safetensors.torch.load(data)
    if _TREE not in tensors:
        raise ValueError("the state of a replica lacks its description")
    return _restored(json.loads(bytes(tensors[_TREE].tolist())), tensors)


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "pairs" in value:
        return {key: _restored(inner, tensors) for key, inner in value["pairs"]}
    return [_restored(inner, tensors) for inner in value["list"]]


class StateTransport:
    """torchft's `CheckpointTransport`: serves this replica's state to those that join.

    `address` is where others reach this machine. A request waits until its step is offered.
    """

    def __init__(self, address: str, patience: timedelta) -> None:
        self._offered = threading.Condition()
        self._step, self._data = -1, b""
        self._patience = patience.total_seconds()
        transport = self

        class Handler(BaseHTTPRequestHandler):
            """Answers GET /STEP."""

            timeout = transport._patience

            def do_GET(self) -> None:
                """Send the state of the step."""
                data = transport._wait_for(self.path.strip("/"))
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("", 0), Handler)
        self._server.daemon_threads = True
        self._url = f"http://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _wait_for(self, step: str) -> bytes | None:
        with self._offered:
            self._offered.wait_for(lambda: step == str(self._step), self._patience)
            return self._data if step == str(self._step) else None

    def metadata(self) -> str:
        """Where others find the states."""
        return self._url

    def send_checkpoint(
        self, dst_ranks: Sequence[int], step: int, state_dict: Any, timeout: timedelta
    ) -> None:
        """Offer the state of this step."""
        data = packed(state_dict)
        with self._offered:
            self._step, self._data = step, data
            self._offered.notify_all()

    def disallow_checkpoint(self) -> None:
        """Offer none; called once all replicas have agreed on the step, so none needs it."""
        with self._offered:
            self._step, self._data = -1, b""

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> Any:
        """The state that another replica offers."""
        seconds = timeout.total_seconds()
        with urllib.request.urlopen(f"{metadata}/{step}", timeout=seconds) as answer:
            return unpacked(answer.read())

    def shutdown(self, wait: bool = True) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
