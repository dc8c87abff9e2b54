"""Verifiers of code: Python is parsed, SQL runs on its table, a pattern is tested on its examples.

Code of a model never runs in this process. SQL runs read-only in a database in memory. Python and
patterns run in a child process with limits on time, memory, files and processes, where the system
has `resource`. That process has access to the network: run only kinds whose prompts you trust.
"""

import ast
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from ys_llm.data.records import Record

_FENCE = re.compile(r"```(\w*)[ \t]*\n(.*?)```", re.DOTALL)
_SQL_SECONDS = 2.0
_STEPS_BETWEEN_CHECKS = 10_000  # of sqlite's virtual machine; some tenths of a millisecond
_LONGEST_VALUE = 1_000_000  # bytes of one value; zeroblob() could fill the memory
_MOST_ROWS = 1000
_PATTERN_SECONDS = 5.0  # including the start of Python
_LONGEST_PATTERN = 300

# The child sets its limits before it reads the code.
_LIMITS = """
import sys
try:
    import resource
    for name, limit in (("CPU", {seconds}), ("AS", {memory}), ("FSIZE", 0), ("NPROC", 0)):
        key = getattr(resource, "RLIMIT_" + name, None)
        if key is not None:
            resource.setrlimit(key, (limit, limit))
except ImportError:
    pass
"""
_RUN = "exec(compile(sys.stdin.read(), 'answer.py', 'exec'), {'__name__': '__main__'})"
_MATCH = """
import json, re
pattern, matches, misses = json.load(sys.stdin)
compiled = re.compile(pattern)
wrong = [text for text in matches if not compiled.fullmatch(text)]
wrong += [text for text in misses if compiled.fullmatch(text)]
print(json.dumps(wrong))
"""


def code_of(text: str, language: str = "") -> str:
    """The code blocks of a text, those of the language if there are any; else the text itself."""
    blocks = _FENCE.findall(text)
    named = [code for name, code in blocks if name.lower() == language]
    chosen = named or [code for _, code in blocks]
    return "\n".join(chosen) if chosen else text


def python(
    record: Record,
    slots: Mapping[str, str],
    run: bool = False,
    seconds: int = 5,
    megabytes: int = 256,
) -> str:
    """The response is Python that defines a function or class; with `run`, it runs too."""
    code = code_of(record.response, "python")
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"not Python: {error}"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if not any(isinstance(node, kinds) for node in ast.walk(tree)):
        return "it defines no function and no class"
    if not run:
        return ""
    return _run(_RUN, code, seconds=seconds, megabytes=megabytes)[1]


def _run(script: str, given: str, *, seconds: float, megabytes: int) -> tuple[str, str]:
    """The output of a child with limits, and why it failed or ""."""
    limits = _LIMITS.format(seconds=int(seconds) + 1, memory=megabytes * 2**20)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", limits + script],
                input=given.encode("utf-8", "replace"),
                capture_output=True,
                cwd=folder,
                env={},
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return "", f"did not end within {seconds:g} seconds"
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace"), ""
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return "", f"failed: {last[0] if last else f'exit code {done.returncode}'}"


def regex(record: Record, slots: Mapping[str, str]) -> str:
    """The pattern of the response compiles, matches every line of slot `matches`, not `misses`."""
    pattern = _pattern_of(record.response)
    if len(pattern) > _LONGEST_PATTERN:
        return f"a pattern of {len(pattern)} characters"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a pattern: {error}"
    examples = [slots.get(name, "").splitlines() for name in ("matches", "misses")]
    given = json.dumps([pattern, *examples])
    printed, failed = _run(_MATCH, given, seconds=_PATTERN_SECONDS, megabytes=256)
    if failed:
        return f"the pattern {failed}"
    wrong = json.loads(printed)
    return f"the pattern is wrong about {wrong[0]!r}" if wrong else ""


def _pattern_of(text: str) -> str:
    """The last code of a response, fenced or in backquotes, or its last line."""
    fenced = _FENCE.findall(text)
    if fenced:
        return str(fenced[-1][1]).strip()
    quoted = re.findall(r"`([^`\n]+)`", text)
    lines = text.strip().splitlines()
    return str(quoted[-1]) if quoted else (lines[-1].strip() if lines else "")


def sql(record: Record, slots: Mapping[str, str], rows: int = 0) -> str:
    """The query of the response only reads, and runs on the slot `schema`.

    It gives the slot `result` (JSON lists) where there is one, and at least `rows` rows.
    """
    query = _query_of(record.response)
    if not query:
        return "there is no query"
    try:
        found = answered(slots["schema"], query)
    except (sqlite3.Error, sqlite3.Warning) as error:
        return f"the query fails: {error}"
    if "result" in slots and [list(row) for row in found] != json.loads(slots["result"]):
        return f"the query gives {found[:3]}, not the expected result"
    return f"the query gives {len(found)} rows" if len(found) < rows else ""


def _query_of(text: str) -> str:
    code = code_of(text, "sql")
    found = re.search(r"^\s*((?:SELECT|WITH)\b.*?)(?:;|\n\s*\n|\Z)", code, re.I | re.S | re.M)
    return found[1].strip() if found else ""


def answered(schema: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of one query on a new database. Raises sqlite3.Error if it fails or writes."""
    return answered_with_names(schema, query)[1]


def answered_with_names(schema: str, query: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Column names and rows of one read-only query, within a time limit."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(schema)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        database.set_authorizer(_only_reading)
        until = time.monotonic() + _SQL_SECONDS
        database.set_progress_handler(lambda: int(time.monotonic() > until), _STEPS_BETWEEN_CHECKS)
        cursor = database.execute(query)
        return tuple(name[0] for name in cursor.description), cursor.fetchmany(_MOST_ROWS)
    finally:
        database.close()


def _only_reading(action: int, *_names: str | None) -> int:
    allowed = (
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    )
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
