"""benchmarks/large_text.py prepares the same text by both paths, and a second start finds it."""

from pathlib import Path

import pytest

from benchmarks import large_text
from ys_llm.data import readers


def test_both_paths_prepare_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SPOOL_BYTES", 0)
    monkeypatch.setattr(large_text, "_FILE_BYTES", 40_000)
    large_text.write_text(tmp_path / "text", 100_000)
    assert len(list((tmp_path / "text").iterdir())) == 3
    found = {}
    for name, in_memory in (("rows", False), ("again", False), ("in memory", True)):
        cache = tmp_path / name.replace("again", "rows")
        cache.mkdir(exist_ok=True)
        found[name] = large_text.prepare(tmp_path / "text", cache, in_memory=in_memory)
    for key in ("documents", "bytes", "tokens"):
        assert found["rows"][key] == found["again"][key] == found["in memory"][key]
    assert 100_000 <= found["rows"]["bytes"] < 140_000
    assert [line.split()[0] for line in large_text.report(found)] == ["rows", "again", "in"]
