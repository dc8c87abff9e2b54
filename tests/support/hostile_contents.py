"""Contents that would run code, exhaust the memory or break a reader: made here, read by tests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

BOMB_LEVELS = 12  # 9**12 values, from less than a kilobyte
DEEP = 100_000  # levels of nesting, a hundred times what Python's stack allows


class _Trap:
    """Unpickling it makes the folder `marker`."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._marker,)


def pickles(marker: Path) -> dict[str, bytes]:
    """Files that make the folder `marker` when something unpickles them."""
    trap = _Trap(marker)
    array, saved, legacy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([trap], dtype=object), allow_pickle=True)
    torch.save({"weights": trap}, saved)
    torch.save(trap, legacy, _use_new_zipfile_serialization=False)
    return {
        "a pickle of letters": pickle.dumps(trap, protocol=0),
        "a pickle": pickle.dumps({"step": trap}, protocol=5),
        "a numpy array of objects": array.getvalue(),
        "a torch file": saved.getvalue(),
        "an old torch file": legacy.getvalue(),
    }


def tagged_yaml(marker: Path) -> dict[str, str]:
    """YAML that makes the folder `marker`, or gets at Python's names, with an unsafe loader."""
    python, mkdir = "tag:yaml.org,2002:python", f"object/apply:os.mkdir ['{marker}']"
    return {
        "apply": f"!!python/{mkdir}",
        "apply in a value": f"train:\n  seed: !!python/{mkdir}\n",
        "apply in a name": f"? !!python/{mkdir}\n: 1\n",
        "apply in full": f"run: !<{python}/object/apply:os.mkdir> ['{marker}']\n",
        "a handle of its own": f"%TAG !x! {python}/\n---\nrun: !x!{mkdir}\n",
        "new": f"run: !!python/object/new:os.mkdir ['{marker}']\n",
        "a function": "run: !!python/name:os.system\n",
        "a module": "run: !!python/module:os\n",
        "bytes": "run: !!binary aGVsbG8=\n",
        "a set": "model: !!set {d_model, n_layers}\n",
    }


def yaml_bombs() -> dict[str, str]:
    """YAML that is small and whose values are not."""
    names = "abcdefghijklm"[:BOMB_LEVELS]
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    maps = ["a: &a {x: 1, y: 2}"]
    for inner, name in pairwise(names):
        rows.append(f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]")
        maps.append(f"{name}: &{name} {{{', '.join(f'x{i}: *{inner}' for i in range(9))}}}")
    return {
        "aliases of lists": "\n".join(rows),
        "aliases of mappings": "\n".join(maps),
        "aliases in options": "\n".join(["model:", "  options:", *(f"    {m}" for m in maps)]),
        "a merge key": "base: &b {x: 1}\nmodel:\n  <<: [*b, *b]\n",
        "nested lists": "run: " + "[" * DEEP,
        "nested mappings": "{a: " * DEEP,
        "nested dashes": "- " * 2000,
        "a value that holds itself": "model: &m\n  options: *m\n",
        "a huge number": f"train:\n  seed: 0x{'f' * 20_000}\n",
        "a huge decimal number": f"train:\n  seed: {'9' * 20_000}\n",
        "a huge number of minutes": f"train:\n  seed: 1{':59' * 20_000}\n",
        "a huge number of seconds": f"train:\n  learning_rate: 1{':59' * 20_000}.5\n",
        "a float without end": "train:\n  learning_rate: 1e999999999\n",
        "two documents": "run: a\n---\nrun: b\n",
        "a zero byte": "run: a\0b\n",
    }


def json_bombs() -> dict[str, str]:
    """JSON texts that are objects and numbers to the eye, and no description of anything."""
    return {
        "nested lists": "[" * DEEP,
        "nested lists, closed": "[" * DEEP + "]" * DEEP,
        "nested objects": '{"a":' * DEEP,
        "a huge number": '{"step": ' + "9" * 20_000 + "}",
        "a number": "1e999",
        "null": "null",
        "text": '"{}"',
        "half of a character": '{"step": "\\ud800"}',
        "nothing": "",
        "not UTF-8": "\udcff",
    }


def zip_bomb() -> bytes:
    """Fifty megabytes of nothing in fifty kilobytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    return packed.getvalue()


def safetensors_file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of that format with this header, and with any length claimed for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(text) if length is None else length
    return claimed.to_bytes(8, "little") + text + data


def _tensor(begin: int, end: int, *, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def absurd_safetensors() -> dict[str, bytes]:
    """Files of the format of safetensors with a header that lies."""
    make, four = safetensors_file, bytes(16)
    twice = b'{"a":%s,"a":%s}' % ((json.dumps(_tensor(0, 16, shape=[4])).encode(),) * 2)
    headers: dict[str, Any] = {
        "an unknown dtype": {"a": _tensor(0, 16, shape=[4], dtype="PICKLE")},
        "a negative offset": {"a": _tensor(-16, 0, shape=[4])},
        "an offset beyond the end": {"a": _tensor(0, 1 << 40, shape=[1 << 38])},
        "offsets the wrong way round": {"a": _tensor(16, 0, shape=[4])},
        "overlapping tensors": {"a": _tensor(0, 16, shape=[4]), "b": _tensor(8, 16, shape=[2])},
        "a hole": {"a": _tensor(4, 16, shape=[3])},
        "a negative size": {"a": _tensor(0, 16, shape=[-4])},
        "a size that overflows": {"a": _tensor(0, 16, shape=[1 << 62, 1 << 62])},
        "a size that overflows to what is there": {"a": _tensor(0, 16, shape=[1 << 63, 2, 4])},
        "none of much": {"a": _tensor(0, 0, shape=[0, 1 << 62]), "b": _tensor(0, 16, shape=[4])},
        "sizes that do not fit the offsets": {"a": _tensor(0, 16, shape=[5])},
        "metadata that is no text": {"__metadata__": {"a": 1}, "a": _tensor(0, 16, shape=[4])},
        "a list": [1, 2],
        "numbers as offsets": {"a": {"dtype": "F32", "shape": [4], "data_offsets": 16}},
        "not JSON": b"{",
        "not UTF-8": b'{"\xff": 1}',
        "nested lists": b"[" * DEEP,
        "one name twice": twice,
    }
    lengths = {f"a header of {n:,} bytes": n for n in (0, 100_000_000, 1 << 63, (1 << 64) - 1)}
    return {
        **{name: make(header, four) for name, header in headers.items()},
        **{name: make({"a": 1}, four, length=length) for name, length in lengths.items()},
        "nothing": b"",
        "seven bytes": b"\x01" * 7,
        "another file's tensors": make({"a": _tensor(0, 16, shape=[4])}, four),
    }


def resign(path: Path) -> None:
    """Write the sum of a checkpoint's file as it is now."""
    sums = path.parent / "SHA256SUMS"
    if sums.exists() and sums != path:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [line for line in sums.read_text().splitlines() if not line.endswith(path.name)]
        sums.write_text("\n".join([*lines, f"{digest}  {path.name}"]) + "\n")
