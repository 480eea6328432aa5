"""The figure of "How it works": two decodings of one small model, pass by pass. `python docs/site/figure.py` draws it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling import Decoder, HostStep, Outcome, Request, Window
from coupled_sampling.drafting import Repeat

FIGURE = Path(__file__).parents[1] / "images" / "steps.svg"
LENGTH, WINDOW, SEED = 16, 8, 2
DRAFTING = Repeat(fill=3)
CELL, GAP, LEFT, TOP = 26, 3, 92, 44
COLOURS = {
    "committed": ("#e4e6ea", "#6b7280"),
    "accepted": ("#2f855a", "#ffffff"),
    "own": ("#c05621", "#ffffff"),
    "kept": ("#bee3f8", "#1a365d"),
    "changed": ("#ffffff", "#1a365d"),
}
LEGEND = {
    "committed": "final since an earlier pass",
    "accepted": "draft accepted",
    "own": "drawn by this pass",
    "kept": "redraft that stayed the same",
    "changed": "redraft that changed",
}


class Walk:
    """Six tokens in a row; each prefers neighbours of the one before."""

    vocab_size, batch_size, max_length = 6, 1, 64

    def forward(self, tokens: Any, start: Any) -> Any:
        return -np.abs(tokens[..., None] - np.arange(6)).astype(float)


class Pass(NamedTuple):
    """What one pass left behind: a token and a kind for each position it touched, from ``first`` on."""

    first: int
    tokens: list[int]
    kinds: list[str]


class Recorder(HostStep):
    """A `HostStep` that keeps what it saw."""

    passes: list[Pass]

    def step(self, window: Window) -> Outcome:
        outcome = super().step(window)
        known, drafts = int(window.known[0]), int(window.recycled[0] + window.fresh[0])
        # Slot known - 1 decides the first open position; one more position than there are drafts is decided or drafted.
        after = outcome.tokens[0, known - 1 : known + drafts].tolist()
        before = [*window.tokens[0, known : known + drafts].tolist(), None]
        committed = int(outcome.committed[0])
        kinds = ["accepted"] * (committed - 1) + ["own"]
        kinds += ["kept" if old == new else "changed" for old, new in zip(before, after, strict=True)][committed:]
        self.passes.append(Pass(int(window.start[0]) + known, after, kinds))
        return outcome


def decode(method: str) -> list[Pass]:
    """The passes of one sequence."""
    step = Recorder(Walk(), method)
    step.passes = []
    decoder = Decoder(step, window=WINDOW, drafting=DRAFTING)
    decoder.add(Request([3], length=LENGTH, seed=SEED))
    while decoder.active or decoder.waiting:
        decoder.step()
    return step.passes


def cell(x: float, y: float, kind: str, text: str) -> str:
    """One square."""
    fill, ink = COLOURS[kind]
    return (
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="4" fill="{fill}" stroke="#a0aec0"/>'
        f'<text x="{x + CELL / 2}" y="{y + CELL / 2 + 5}" text-anchor="middle" fill="{ink}">{text}</text>'
    )


def panel(title: str, passes: list[Pass], top: float) -> list[str]:
    """One decoding: a row for each pass, a column for each position."""
    drawn = [f'<text x="{LEFT}" y="{top - 12}" font-weight="bold">{title}</text>']
    final: dict[int, int] = {}
    for i, (first, tokens, kinds) in enumerate(passes):
        y = top + i * (CELL + GAP)
        drawn.append(f'<text x="{LEFT - 10}" y="{y + 18}" text-anchor="end" fill="#4a5568">pass {i + 1}</text>')
        seen = dict(zip(range(first, first + len(tokens)), zip(kinds, tokens, strict=True), strict=True))
        for position in range(1, LENGTH + 1):
            kind, token = ("committed", final[position]) if position in final else seen.get(position, ("", -1))
            if kind:
                drawn.append(cell(LEFT + (position - 1) * (CELL + GAP), y, kind, str(token)))
        final |= {position: token for position, (kind, token) in seen.items() if kind in ("accepted", "own")}
    return drawn


def figure() -> str:
    """The whole figure as SVG."""
    sjd, scd = decode("sjd"), decode("scd-maximal")
    below = TOP + len(sjd) * (CELL + GAP) + 44
    end = below + len(scd) * (CELL + GAP) + 20
    drawn = panel(f"sjd: redrafts are independent, {len(sjd)} passes", sjd, TOP)
    drawn += panel(f"scd-maximal: redrafts are coupled, {len(scd)} passes", scd, below)
    for i, (kind, text) in enumerate(LEGEND.items()):
        x, y = LEFT + (i % 2) * 230, end + (i // 2) * (CELL + 6)
        drawn += [cell(x, y, kind, "3"), f'<text x="{x + CELL + 8}" y="{y + 18}">{text}</text>']
    width, height = LEFT + LENGTH * (CELL + GAP) + 12, end + 3 * (CELL + 6) + 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14" fill="#1a202c">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    )
    return "\n".join([head, *drawn, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(figure())
