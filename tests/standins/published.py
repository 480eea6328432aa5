"""What the documentation says of models' published settings."""

from pathlib import Path

__all__ = ["published", "recommended"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "families-visual.md"


def published(model):
    """Temperature, top-k, top-p and guidance in the row of ``model``; none is what a bundle has where there is none."""
    text = DOCUMENT.read_text().partition("### Published settings")[2]
    row = next(line for line in text.splitlines() if line.startswith(f"| {model} |"))
    temperature, top_k, top_p, guidance = (cell.strip() for cell in row.split("|")[2:6])
    return (
        float(temperature),
        None if top_k == "none" else int(top_k),
        float(top_p),
        float(guidance.replace("none", "1")),
    )


def recommended(decoding):
    """The same four of what a family recommends."""
    return decoding.temperature, decoding.top_k, decoding.top_p, decoding.guidance
