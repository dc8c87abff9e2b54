"""Reads a page: whether its tags are balanced, what it loads, and what it says."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "input", "link", "hr", "img"}


class Page(HTMLParser):
    """`unclosed` tags, `loaded` addresses outside of the page, `text`, headings, tables' cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.unclosed: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.bare_headers = 0
        self.unnamed_images = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.unclosed.append(tag)
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))
        self.ids += [given["id"]] if "id" in given else []
        links = [given[name] for name in ("src", "href") if name in given]
        self.targets += [link[1:] for link in links if link.startswith("#")]
        self.loaded += [link for link in links if not link.startswith("#")]
        self.bare_headers += tag == "th" and "scope" not in given
        self.unnamed_images += tag == "svg" and not given.get("aria-label")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.unclosed.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.unclosed and self.unclosed[-1] == tag:
            self.unclosed.pop()
        else:
            self.unclosed.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if not self.unclosed or self.unclosed[-1] != "style":
            self.text += data


def problems_of(html: str) -> list[str]:
    """What keeps a page from working offline, or from being read by keyboard and screen reader."""
    page = Page(html)
    steps = zip([0, *page.headings], page.headings, strict=False)
    found = {
        f"not closed: {page.unclosed}": page.unclosed,
        f"loads {page.loaded}": page.loaded,
        "has a script": "<script" in html,
        "a table's header without scope": page.bare_headers,
        "a chart without words": page.unnamed_images,
        f"headings {page.headings}": any(now > before + 1 for before, now in steps),
        f"links to {page.targets}": set(page.targets) - set(page.ids),
        f"{len(html)} bytes": len(html.encode()) > 300_000,
        "no language": '<html lang="' not in html,
    }
    return [problem for problem, is_there in found.items() if is_there]
