"""The text of a web page, without its menus, scripts and footers, by trafilatura."""

from pathlib import Path

from ys_llm.data.containers import needs


def text_of_page(html: str, path: Path) -> str:
    """Return the main text of a page, its paragraphs on lines; "" where there is none.

    Raises UserError where trafilatura is not installed.
    """
    try:
        import trafilatura
    except ImportError as error:
        raise needs("trafilatura", path) from error
    return trafilatura.extract(html, include_comments=False) or ""
