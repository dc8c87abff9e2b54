"""The figure of a saved report: tokens/s of a layer by each backend, as an SVG.

One panel per shape, each to its own scale. A line marks the speed at which the layer's matmuls
would run at the rate of the machine's large ones. Readable on white and on black: text and bars
follow the reader's colour scheme where the viewer knows it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

WIDTH, LABEL, BAR, GAP, RIGHT = 860, 190, 15, 5, 130
PANEL_TOP, PANEL_BOTTOM = 42, 26
FARTHEST = 4.0  # times the longest bar; a limit beyond it is text, not a line
# Cases with labels for readers, and whether they are ours.
NAMES = {
    "reference fp32": ("literal loop, fp32", False),
    "nn.RNN": ("nn.RNN", False),
    "nn.GRU": ("nn.GRU", False),
    "nn.LSTM": ("nn.LSTM", False),
    "min_gru": ("minGRU", False),
    "windowed fp32": ("ys, no compiler, fp32", True),
    "windowed bf16": ("ys, no compiler, bf16", True),
    "cpp fp32": ("ys, compiled, fp32", True),
    "cpp bf16": ("ys, compiled, bf16", True),
}
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px; fill: #59636e }
.ours { fill: #0969da } .theirs { fill: #8c959f } .limit { stroke: #bc4c00 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .ours { fill: #4493f8 } .theirs { fill: #656c76 } .limit { stroke: #f0883e }
}
"""


def svg(report: Mapping[str, Any]) -> str:
    """The figure; a report without a layer gives one that says so."""
    groups = [group for group in report["groups"] if group["name"].startswith("layer ")]
    parts, top = [], 0.0
    for group in groups:
        panel = list(_panel(group, _limit(report, group), top))
        parts += panel
        top += PANEL_TOP + PANEL_BOTTOM + len(case_rates(group)) * (BAR + GAP)
    if not groups:
        parts, top = [_text(20, 30, "no layer was measured")], 50
    held = f" restricted to {report['restricted_to']}" if report["restricted_to"] else ""
    caption = f"{report['processor']}{held}, {report['threads']} threads, torch {report['torch']}"
    parts.append(_text(8, top + 12, f"{caption}, commit {report['commit']}", kind="small"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 22:.0f}" '
        f'viewBox="0 0 {WIDTH} {top + 22:.0f}" role="img">\n'
        f"<title>Training speed of one layer</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _limit(report: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    """Tokens/s if every matmul of the layer ran at the rate of the machine's large ones."""
    (machine,) = (found for found in report["groups"] if found["name"] == "machine")
    case = f"matmul {group['facts']['default'].split()[-1]}"
    rate = machine["facts"]["work"][case] / min(machine["seconds"][case])
    return float(rate * group["facts"]["tokens"] / group["facts"]["flops"])


def case_rates(group: Mapping[str, Any]) -> dict[str, float]:
    """Tokens/s of each case named above; of layers with several modes the fastest."""
    rows = {}
    for name in NAMES:
        seconds = [
            statistics.median(times)
            for case, times in group["seconds"].items()
            if case == name or case.startswith(f"{name} ")
        ]
        if seconds:
            rows[name] = group["facts"]["tokens"] / min(seconds)
    return rows


def _panel(group: Mapping[str, Any], limit: float, top: float) -> Iterator[str]:
    shape, rows = group["facts"]["shape"], case_rates(group)
    heads = f", {shape['n_heads']} heads" if shape["n_heads"] > 1 else ""
    title = f"batch {shape['B']} x {shape['T']} tokens, width {shape['E']}, state {shape['S']}"
    yield _text(8, top + 20, f"{title}{heads}")
    end = min(max(limit, *rows.values()), FARTHEST * max(rows.values()))
    scale = (WIDTH - LABEL - RIGHT) / end
    for number, (name, rate) in enumerate(rows.items()):
        y = top + PANEL_TOP + number * (BAR + GAP)
        label, ours = NAMES[name]
        yield _text(LABEL - 8, y + 12, label, anchor="end")
        yield (
            f'<rect class="{"ours" if ours else "theirs"}" x="{LABEL}" y="{y}" '
            f'width="{max(1.0, rate * scale):.1f}" height="{BAR}" rx="2" '
            f'fill="{"#0969da" if ours else "#8c959f"}"/>'
        )
        times = rate / rows["reference fp32"]
        label = f"{rate:,.0f} tokens/s, {times:.1f}x"
        yield _text(LABEL + rate * scale + 6, y + 12, label, kind="small")
    label = f"large matmuls alone: {limit:,.0f}"
    if limit > end:
        yield _text(WIDTH - 8, top + 20, f"{label} →", anchor="end", kind="small")
        return
    x, bottom = LABEL + limit * scale, top + PANEL_TOP + len(rows) * (BAR + GAP)
    yield (
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 28}" y2="{bottom}" '
        'stroke="#bc4c00" stroke-width="1.5" stroke-dasharray="4 3"/>'
    )
    yield _text(x, top + 20, label, anchor="end" if x > WIDTH / 2 else "start", kind="small")


def _text(x: float, y: float, label: str, *, anchor: str = "start", kind: str = "") -> str:
    fill, size = ("#59636e", 11) if kind else ("#1f2328", 13)
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}" font-family="sans-serif">{escape(label)}</text>'
    )
