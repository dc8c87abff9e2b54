"""A page as one HTML file that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLOURS = 6  # classes s0 to s5; what is drawn beyond them begins again
STYLE = """
:root { color-scheme: light dark; --text: #1c1c1a; --soft: #5f5e5a; --line: #d9d7d0;
  --page: #fdfcfa; --panel: #f4f2ed; --bad: #a3281f; --good: #1d6b42;
  --c0: #2364aa; --c1: #c4500c; --c2: #0b7a5c; --c3: #7a45b5; --c4: #b0246c; --c5: #6d6200; }
@media (prefers-color-scheme: dark) { :root { --text: #e9e7e1; --soft: #a5a39c; --line: #3b3a37;
  --page: #191918; --panel: #232321; --bad: #f2938a; --good: #7cc79c;
  --c0: #7db4f0; --c1: #f09a5c; --c2: #5fcfa9; --c3: #c09bf0; --c4: #f083b8; --c5: #d2c455; } }
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  max-width: 66rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: bottom; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 500; color: var(--soft); white-space: normal; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; flex: 1 1 18rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
code { font-size: .8rem; }
""" + "\n".join(
    f".s{index} {{ color: var(--c{index}); }} svg text.s{index} {{ fill: var(--c{index}); }}"
    for index in range(COLOURS)
)
# Of pages that are read from top to bottom, with a head, a list of their sections, and long texts.
READING_STYLE = """
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { border-top: 1px solid var(--line);
  font-size: 1.25rem; margin-top: 3rem; padding-top: 1.25rem; scroll-margin-top: .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; } p { max-width: 44rem; }
a { color: var(--c0); } a:focus-visible, summary:focus-visible, .wide:focus-visible {
  outline: 2px solid var(--c0); outline-offset: 3px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
  margin: 1.5rem 0 0; }
dl.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr));
  gap: 1.25rem 1.5rem; margin: 1.5rem 0 0; }
dl.figures div { border-top: 2px solid var(--text); padding-top: .4rem; }
dl.figures dt { color: var(--soft); font-size: .8125rem; line-height: 1.3; }
dl.figures dd { font-size: 1.375rem; font-variant-numeric: tabular-nums; margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  gap: 2rem 2.5rem; } figcaption { margin-top: .25rem; } figure h3 { margin: 0 0 .35rem; }
td, td.words, tbody th { vertical-align: top; } td.long { white-space: normal; text-align: left;
  min-width: 10rem; overflow-wrap: anywhere; } td:last-child, th:last-child { padding-right: 0; }
tbody th { text-align: left; color: var(--text); font-weight: 400; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--c0); width: fit-content; }
blockquote, pre { margin: .35rem 0 1.5rem; padding: .1rem 0 .1rem 1rem;
  border-left: 3px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere;
  max-width: 44rem; } blockquote { font-family: ui-serif, Georgia, serif; font-size: 1.0625rem; }
pre { font: .8125rem/1.5 ui-monospace, monospace; }
.notice { background: var(--panel); border-left: 4px solid var(--c0); padding: .75rem 1.25rem; }
.notice.bad { border-color: var(--bad); } .notice p { margin: .35rem 0; max-width: none; }
.bad strong, del { color: var(--bad); } ins { color: var(--good); text-decoration: none; }
footer { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem; }
@media (max-width: 40rem) { body { margin: 1.25rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; } }
@media print { nav { display: none; } }
"""


def document(title: str, body: Iterable[str], *, style: str = "") -> str:
    """The whole file; `body` is HTML, `style` CSS beside that of every page."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def contents(sections: Mapping[str, str]) -> str:
    """Links to the sections of a page: the text of each by its id."""
    links = "".join(
        f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in sections.items()
    )
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def figures(values: Mapping[str, str]) -> str:
    """Key figures under their names."""
    rows = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="figures">{"".join(rows)}</dl>'


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    words: Sequence[int] = (),
    long: Sequence[int] = (),
) -> str:
    """A table of HTML cells; the first of a row is its heading.

    `words` are the numbers of columns of text, `long` those whose text may wrap.
    """
    marks = [
        ' class="words"' if n in words else ' class="words long"' if n in long else ""
        for n in range(len(columns))
    ]
    head = "".join(
        f'<th scope="col"{mark}>{escape(name)}</th>'
        for name, mark in zip(columns, marks, strict=True)
    )
    body = "".join(f"<tr>{_cells(row, marks)}</tr>" for row in rows)
    # A part that scrolls must be reachable by keyboard, and then needs a name.
    return (
        f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: Sequence[str], marks: Sequence[str]) -> str:
    first, *rest = row
    cells = (f"<td{mark}>{cell}</td>" for cell, mark in zip(rest, marks[1:], strict=True))
    return f'<th scope="row">{first}</th>{"".join(cells)}'


def details(summary: str, inner: str) -> str:
    """What is shown when it is opened."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"
