"""`ys serve`: trained models over HTTP, in the protocols of ollama and of OpenAI."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from ys_llm.cli.common import (
    RUNS_DIR,
    Device,
    Quantization,
    add_device_flag,
    add_quantize_flag,
    load_quantized,
)
from ys_llm.errors import EXIT_USAGE, UsageError, UserError, command_line

DEFAULT_PORT = 11500  # ollama's own is 11434
NEEDED = ("starlette", "uvicorn")
EXAMPLES = f"""\
examples:
  ys serve                                      the latest run, on http://127.0.0.1:{DEFAULT_PORT}
  ys serve quickstart mine --port 8000          two models, loaded when they are asked for
  OLLAMA_HOST=http://127.0.0.1:{DEFAULT_PORT} llm -m ollama/quickstart "Hello."
  curl http://127.0.0.1:{DEFAULT_PORT}/api/generate -d '{{"model": "mine", "prompt": "Who?"}}'
  YS_API_KEY=secret ys serve --host 0.0.0.0     for others too, who send the key

Clients of ollama and of OpenAI work unchanged; /openapi.json describes what is supported, and
anything else is refused by its name. /metrics counts requests and tokens. Ctrl-C stops the server.
Needs the packages of: pip install 'ys_llm[serve]'
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys serve`."""

    names: list[str]
    host: str
    port: int
    api_key: str | None
    allow_origin: list[str]
    quantize: Quantization
    device: Device


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys serve`."""
    add = parser.add_argument
    names_help = "names or folders of runs; clients use the folder's name (default: the latest)"
    add("names", metavar="RUN", nargs="*", help=names_help)
    host_help = "address to listen on (default: this machine alone; others need an API key)"
    add("--host", metavar="ADDRESS", default="127.0.0.1", help=host_help)
    port_help = f"port to listen on; 0 finds a free one (default: {DEFAULT_PORT})"
    add("--port", metavar="N", type=int, default=DEFAULT_PORT, help=port_help)
    key_help = "clients must send it as a bearer token; YS_API_KEY does not show it to other users"
    add("--api-key", metavar="KEY", help=key_help)
    origin_help = "let pages of this origin use the server, as http://localhost:3000; repeatable"
    add("--allow-origin", metavar="URL", action="append", default=[], help=origin_help)
    add_quantize_flag(parser)
    add_device_flag(parser)


def run(arguments: Arguments) -> int:
    """Serve until Ctrl-C; the exit code."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        problem = f"the server needs {' and '.join(missing)}"
        raise UserError(problem, "Type: pip install 'ys_llm[serve]'")
    if not 0 <= arguments.port < 1 << 16:
        raise UsageError(f"--port must be 0 to 65535, found {arguments.port}")
    api_key = arguments.api_key or os.environ.get("YS_API_KEY", "")
    if not api_key and not _is_loopback(arguments.host):
        again = command_line("serve", *arguments.names, host=arguments.host, api_key="KEY")
        problem = f"on {arguments.host} others can use the models, and no API key is given"
        raise UserError(problem, f"Type: {again}", exit_code=EXIT_USAGE)
    _serve(arguments, api_key)
    return 0


def _serve(arguments: Arguments, api_key: str) -> None:
    runs = _runs(arguments.names)
    from ys_llm.serving.guard import Access
    from ys_llm.serving.server import Serving, listen, serve

    access = Access(arguments.host, api_key, frozenset(arguments.allow_origin))
    load = partial(load_quantized, quantization=arguments.quantize, device=arguments.device)
    with listen(arguments.host, arguments.port) as listener:
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{listener.getsockname()[1]}"

        def announce() -> None:
            """Say that clients may come."""
            print(f"ready  {address}", flush=True)

        serve(Serving(runs, load, access), listener, announce)


def _runs(names: Sequence[str | None]) -> dict[str, Path]:
    """The folder of each run, by the name that clients use."""
    from ys_llm.runs.folder import find_run

    runs: dict[str, Path] = {}
    for name in names or [None]:  # None: the latest
        path = find_run(RUNS_DIR, name)
        known = path.resolve().name
        if known in runs and runs[known].resolve() != path.resolve():
            problem = f"two runs are called {known}: {runs[known]} and {path}"
            raise UserError(problem, "Rename the folder of one.", exit_code=EXIT_USAGE)
        runs[known] = path
    return runs


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return False
