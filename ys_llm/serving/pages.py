"""The page at `/` and its files, from the package; a request only ever names one of them."""

from __future__ import annotations

import mimetypes
from functools import partial
from importlib.resources import files

from ys_llm.serving.exchange import Exchange, Handle

INDEX = "index.html"
_TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css"}


def page_files() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = files("ys_llm.serving") / "web"
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}


def page_handlers() -> dict[str, Handle]:
    """A handler for `/`, and one for each path below `/web/`."""
    found = page_files()
    handlers: dict[str, Handle] = {"/": partial(_send, found[INDEX], INDEX)}
    return handlers | {f"/web/{name}": partial(_send, data, name) for name, data in found.items()}


async def _send(data: bytes, name: str, exchange: Exchange) -> None:
    suffix = name[name.rfind(".") :]
    guessed = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    is_text = guessed.startswith("text/")
    media_type = f"{guessed}; charset=utf-8" if is_text else guessed
    await exchange.send_whole(data, media_type)
