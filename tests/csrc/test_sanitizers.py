"""Every exported function under AddressSanitizer and UndefinedBehaviorSanitizer, at odd sizes.

A process with the sanitizers' runtimes preloaded compiles the sources once more, with `-fsanitize`,
and calls them. Arrays are allocated by C's `malloc` with no number to spare, so that a read
or write past an end is seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ys_llm.csrc import loader

pytestmark = pytest.mark.slow
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
CALLS = Path(__file__).with_name("sanitized_calls.py")


def runtime(name: str) -> str:
    found = loader.compiler()
    assert found is not None
    command = [found.path, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else ""


def test_no_function_reads_or_writes_out_of_bounds(tmp_path: Path) -> None:
    library = loader.load()
    if library is None:
        pytest.skip(loader.unavailable_reason())
    preloaded = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(preloaded):
        pytest.skip("the compiler brings no sanitizers")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, str(CALLS), *FLAGS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ERROR: AddressSanitizer" not in done.stderr
    assert "runtime error" not in done.stderr, done.stderr[-4000:]
    called = set(done.stdout.split())
    functions = {name for name in dir(library.lib) if name.startswith("ys_")}
    assert functions <= called, f"not called: {sorted(functions - called)}"
