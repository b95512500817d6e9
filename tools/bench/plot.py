"""Draws the medians as one SVG: a panel of horizontal bars for each figure that servers are compared by. Needs no library."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from bench.bars import Medians

PANELS = (
    ("streams-1", "tpot_ms", "1 stream: ms per token (less is better)"),
    ("streams-8", "tokens_per_s", "8 streams: tokens/s (more is better)"),
    ("streams-32", "tokens_per_s", "32 streams: tokens/s (more is better)"),
    ("long-prompt", "ttft_ms", "long prompt alone: ms to the first token (less is better)"),
    ("arrivals", "itl_p99_ms", "long prompts into running streams: inter-token p99, ms (less is better)"),
    ("shared-prefix", "warm_ttft_ms", "shared prefix, warm: ms to the first token (less is better)"),
    ("start", "seconds", "start to first token: s (less is better)"),
    ("memory", "loaded_mib", "memory after load: MiB (less is better)"),
)
COLOURS = {"ours": "#2563eb", "llama": "#d97706", "vllm": "#059669"}
WIDTH, LABEL_WIDTH, BAR_WIDTH = 760, 150, 500
ROW, HEAD, GAP = 20, 26, 14


def draw(medians: Medians) -> str:
    """The text of the SVG file."""
    parts: list[str] = []
    top = GAP
    for case, name, title in PANELS:
        pairs = [(server, medians.get(server, case, name)) for server in medians.servers]
        values = [(server, value) for server, value in pairs if value is not None]
        if not values:
            continue
        parts.append(_text(GAP, top + 14, title, "bold"))
        highest = max(value for _, value in values) or 1.0
        for index, (server, value) in enumerate(values):
            parts.append(_bar(top + HEAD + index * ROW, server, value, value / highest))
        top += HEAD + len(values) * ROW + GAP
    frame = f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, frame, *parts, "</svg>", ""])


def _bar(top: int, server: str, value: float, share: float) -> str:
    width = max(1.0, BAR_WIDTH * share)
    colour = COLOURS.get(server.partition(":")[0], "#6b7280")
    bar = f'<rect x="{LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{ROW - 5}" fill="{colour}"/>'
    label = _text(GAP, top + 12, server)
    return f"{label}\n{bar}\n{_text(LABEL_WIDTH + width + 6, top + 12, f'{value:,.1f}')}"


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'
