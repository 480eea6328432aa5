"""A planted bug: an exact replacement in one source file that breaks a promise of the library.

The old text must occur exactly once, so that the list follows the code: a bug whose place was rewritten is refused, not
skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bug"]


@dataclass(frozen=True)
class Bug:
    """One realistic mistake.

    Parameters
    ----------
    name
        Unique, what the reports call it.
    file
        Path of the source file from the root of the checkout.
    old, new
        The text that is replaced, and by what.
    breaks
        One sentence: what no longer holds.
    tests
        Test files, from the root of the checkout, that are run first; they should be fast and kill it.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]

    def misfit(self, root: Path) -> str | None:
        """Why the bug cannot be planted in the checkout at ``root``; None if it can."""
        if self.old == self.new:
            return "its old and its new text are the same"
        missing = [name for name in (self.file, *self.tests) if not (root / name).is_file()]
        if missing:
            return f"there is no {', no '.join(missing)}"
        count = (root / self.file).read_text(encoding="utf-8").count(self.old)
        return None if count == 1 else f"its old text occurs {count} times in {self.file}, expected once"

    def plant(self, root: Path) -> None:
        """Put the bug into the checkout at ``root``.

        Raises
        ------
        ValueError
            It does not fit, see `misfit`.
        """
        reason = self.misfit(root)
        if reason is not None:
            raise ValueError(f"bug {self.name} cannot be planted: {reason}; bring it up to date with the code")
        path = root / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")
