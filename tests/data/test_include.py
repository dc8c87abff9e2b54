"""Source code and web pages are text where they are asked for, and never else."""

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from ys_llm.config.schema import DataConfig
from ys_llm.config.sources import load_config
from ys_llm.data.conversations import read_examples
from ys_llm.data.readers import read_corpus
from ys_llm.errors import UserError

CODE = "# A prompt, then <start> and <end>.\r\nprint('größer')\n"
PAGE = """<!doctype html><html><head><title>Fox</title><script>let hidden = 1</script></head>
<body><nav><a href="/">Home</a> <a href="/news">News</a></nav><article><h1>The fox</h1>
<p>Once there was a fox who lived near the river, and every day he went there to drink.</p>
<p>One day the river was gone, and the fox said: &quot;größer&quot; &lt;start&gt;.</p></article>
<footer>All rights reserved</footer></body></html>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("plain")
    (folder / "b.py").write_bytes(CODE.encode())
    (folder / "c.RS.gz").write_bytes(gzip.compress(b"fn main() {}"))
    (folder / "d.html").write_text(PAGE)
    (folder / "e.htm").write_text("<html><body></body></html>")
    return folder


@pytest.mark.parametrize("read", [read_corpus, read_examples])
def test_code_is_read_as_it_is_where_it_is_asked_for(folder: Path, read: Any) -> None:
    passed_over = "4 files: 1 .htm, 1 .html, 1 .py, 1 .rs.gz"
    assert read(folder).tally.notes() == {"formats": "1 text", "passed over": passed_over}
    found = read(folder, DataConfig(include=("code",)))
    assert found.tally.notes() == {
        "formats": "2 code, 1 text",
        "passed over": "2 files: 1 .htm, 1 .html",
    }
    documents = found.documents if read is read_corpus else found.found
    assert {one.text for one in documents} == {"plain", CODE, "fn main() {}"}


def test_of_a_page_its_main_text_is_read(folder: Path) -> None:
    pytest.importorskip("trafilatura", exc_type=ImportError)
    corpus = read_corpus(folder, DataConfig(include=("html",)))
    assert corpus.tally.forms == {"text": 1, "html": 1, "empty": 1}
    page = next(one.text for one in corpus.documents if one.source.endswith("d.html"))
    assert page.splitlines() == [
        "The fox",
        "Once there was a fox who lived near the river, and every day he went there to drink.",
        'One day the river was gone, and the fox said: "größer" <start>.',
    ]
    (folder / "d.html").write_bytes(PAGE.replace("größer", "больше").encode("cp1251"))
    with pytest.raises(UserError, match=r"d\.html:\d: byte 0x[0-9a-f]{2} .* is not UTF-8"):
        read_corpus(folder, DataConfig(include=("html",)))


def test_without_the_extractor_a_page_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(UserError, match=r"d\.html needs trafilatura, which is not") as refused:
        read_corpus(folder, DataConfig(include=("html",)))
    assert refused.value.fix == 'Type: pip install "ys_llm[data]"'


def test_a_file_that_is_named_says_how_it_is_read(folder: Path) -> None:
    for name, what in (("b.py", "source code"), ("d.html", "a web page")):
        kind = "html" if name == "d.html" else "code"
        with pytest.raises(UserError, match=f"{name} is {what}; expected one of") as refused:
            read_corpus(folder / name)
        assert f"--set data.include=[{kind}]" in refused.value.fix
    config = load_config(None, overrides=["data.include=[code, html]"]).config
    assert config.data.include == ("code", "html")
    assert read_corpus(folder / "b.py", config.data).tally.forms == {"code": 1}
    with pytest.raises(UserError, match=r"data\.include"):
        load_config(None, overrides=["data.include=[pdf]"])
