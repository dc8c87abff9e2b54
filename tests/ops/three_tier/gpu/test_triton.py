"""The Triton kernels, tested without a GPU: interpreted on the CPU, and compiled for an H100.

Each in a process of its own: whether Triton interprets is decided when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[3] / "support"

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install triton (Linux)"
)


def run_tests(file: str, chosen: str, cache: Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    # The newest Triton warns that a default will change; it is no matter of the kernels.
    command += ["-W", "ignore:TRITON_DEFAULT_FP_FUSION", str(TESTS / file)]
    env = {**os.environ, "TRITON_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["dense", "not dense"])
def test_the_kernels_equal_the_reference_as_interpreted(chosen: str, tmp_path: Path) -> None:
    run_tests("triton_interpreted.py", chosen, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["narrow", "wide and bf16", "wide and fp32"])
def test_the_kernels_compile_for_an_h100_and_fit_into_its_registers(
    chosen: str, tmp_path: Path
) -> None:
    run_tests("triton_compiled.py", chosen, tmp_path)


def test_nothing_of_the_package_imports_triton() -> None:
    code = """
import importlib, pathlib, sys, ys_llm
package = pathlib.Path(ys_llm.__file__).parent
for path in sorted(package.rglob('[!_]*.py')):
    importlib.import_module('.'.join(path.relative_to(package.parent).with_suffix('').parts))
assert 'triton' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
