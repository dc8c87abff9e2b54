"""benchmarks/curation.py says what a run took; how fast it was, no test asks."""

from pathlib import Path

from benchmarks.curation import measure


def test_a_run_says_what_it_took(tmp_path: Path) -> None:
    text = "Name a river.<start>The Danube.<end>\n\nName a sea.<start>The Baltic Sea.<end>\n\n"
    (tmp_path / "rivers-1.md").write_text(text)
    found = measure(tmp_path, processes=1)
    assert found.bytes_read == len(text)
    assert found.seconds > 0 and found.processor_seconds > 0
    words = found.line(1).split(", ")
    assert words[:2] == ["0.0 MB", f"processes 1: {len(text) / 1e6 / found.seconds:.2f} MB/s"]
    assert [path.name for path in tmp_path.iterdir()] == ["rivers-1.md"]
