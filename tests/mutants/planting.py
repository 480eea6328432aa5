"""A planted bug: a replacement in one function, method, class or constant that breaks a promise of the library.

A bug says what it breaks by qualified name, and the right code as syntax. So a moved file or another layout of the code
costs nothing. The right code must occur exactly once there, so that the list follows the code: a bug whose place was
rewritten is refused, not skipped.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path

from syntax import Code, code, definitions, occurrences, replaced

__all__ = ["Bug", "Change", "MisfitError", "tests_by_name"]

SOURCES = ("coupled_sampling", "backends", "export")
"""The folders of the checkout whose files bugs are planted in."""


class MisfitError(ValueError):
    """The bug does not fit the code."""


@dataclass(frozen=True)
class Change:
    """What planting a bug does to a source file.

    Parameters
    ----------
    path
        The file.
    before, after
        Its content without and with the bug.
    """

    path: Path
    before: bytes
    after: bytes

    def undo(self) -> None:
        """Put the source back."""
        self.path.write_bytes(self.before)


@dataclass(frozen=True)
class Bug:
    """One realistic mistake.

    Parameters
    ----------
    name
        Unique, what the reports call it.
    within
        Qualified name of the function, method, class or constant that it breaks, such as ``Decoder._remember``. Where
        several modules define that name, ``module:name``, the module being the file's name without folder and ending.
    right, wrong
        The code that is replaced, and by what: both an expression, or both one or several consecutive statements. An
        empty ``wrong`` removes the statements.
    breaks
        One sentence: what no longer holds.
    tests
        Test files, by name without folder and ending, that are run first; they should be fast and kill it.
    """

    name: str
    within: str
    right: str
    wrong: str
    breaks: str
    tests: tuple[str, ...]

    def misfit(self, root: Path) -> str | None:
        """Why the bug cannot be planted in the checkout at ``root``; None if it can."""
        try:
            self.test_paths(root)
            self.change(root)
        except MisfitError as reason:
            return str(reason)
        return None

    def test_paths(self, root: Path) -> list[Path]:
        """Where the ``tests`` lie, from the ``root`` of the checkout.

        Raises
        ------
        MisfitError
            There is none, or more than one, of a name.
        """
        known = tests_by_name(root)
        for name in self.tests:
            if len(known.get(name, ())) != 1:
                several = _listed(known.get(name, []))
                reason = f"there are several {name}.py: {several}" if several else f"there is no {name}.py below tests"
                raise MisfitError(reason)
        return [known[name][0] for name in self.tests]

    def change(self, root: Path) -> Change:
        """What planting the bug in the checkout at ``root`` would do.

        Raises
        ------
        MisfitError
            ``within`` or ``right`` is not there exactly once, or ``right`` and ``wrong`` cannot be exchanged.
        """
        right, wrong, as_expression = self._codes()
        path, source, nodes = self._definition(root)
        found = [place for node in nodes for place in occurrences(node, right, as_expression)]
        if len(found) != 1:
            where = f"{self.within} in {path.relative_to(root)}"
            raise MisfitError(f"its right code occurs {len(found)} times in {where}, expected once")
        after = replaced(source, found[0], wrong, as_expression)
        try:
            compile(after, self.name, "exec", dont_inherit=True)
        except SyntaxError as reason:
            raise MisfitError(f"it leaves no program: {reason}") from reason
        return Change(path, source, after)

    def plant(self, root: Path) -> Change:
        """Put the bug into the checkout at ``root``; what is returned can undo it.

        Raises
        ------
        MisfitError
            It does not fit, see `misfit`.
        """
        try:
            self.test_paths(root)
            change = self.change(root)
        except MisfitError as reason:
            text = f"bug {self.name} cannot be planted: {reason}; bring it up to date with the code"
            raise MisfitError(text) from reason
        change.path.write_bytes(change.after)
        return change

    def _codes(self) -> tuple[Code, Code, bool]:
        """The right code, the wrong code, and whether they are expressions."""
        try:
            right, wrong = code(self.right), code(self.wrong)
        except SyntaxError as reason:
            raise MisfitError(f"its right or its wrong code is not Python: {reason}") from reason
        if not right.text:
            raise MisfitError("its right code is empty")
        as_expression = right.expression is not None and wrong.expression is not None
        if not as_expression and (right.statements is None or wrong.statements is None):
            raise MisfitError("of its right and its wrong code one is an expression and the other is statements")
        pair = [[each.expression] if as_expression else each.statements for each in (right, wrong)]
        if [ast.dump(node) for node in pair[0]] == [ast.dump(node) for node in pair[1]]:
            raise MisfitError("its right and its wrong code are the same")
        return right, wrong, as_expression

    def _definition(self, root: Path) -> tuple[Path, bytes, tuple[ast.stmt, ...]]:
        """The file that defines ``within``, its content, and the nodes of the definition."""
        module, _, name = self.within.rpartition(":")
        found = []
        for path in _source_files(root):
            if not module or path.stem == module:
                source = _content(path)
                if name in (known := definitions(source)):
                    found.append((path, source, known[name]))
        if not found:
            raise MisfitError(f"nothing defines {self.within}")
        if len(found) > 1:
            places = _listed([path.relative_to(root) for path, _, _ in found])
            raise MisfitError(f"{self.within} is defined {len(found)} times, in {places}; say which as module:{name}")
        return found[0]


def tests_by_name(root: Path) -> dict[str, list[Path]]:
    """All test files of the checkout at ``root``, relative to it, by name without folder and ending."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        found.setdefault(path.stem, []).append(path.relative_to(root))
    return found


def _source_files(root: Path) -> list[Path]:
    """The files that bugs are planted in; links to folders are not followed."""
    walks = [os.walk(root / name, followlinks=False) for name in SOURCES]
    return sorted(
        Path(folder, file) for walk in walks for folder, _, files in walk for file in files if file.endswith(".py")
    )


def _content(path: Path) -> bytes:
    return path.read_bytes()


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.as_posix() for path in paths)
