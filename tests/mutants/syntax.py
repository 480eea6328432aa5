"""Python source as syntax: where a name is defined, where a piece of code occurs, and the source with it replaced.

Code is compared as `ast.dump` without positions, so line breaks, quotes, comments and redundant brackets do not matter.
Places are offsets into the bytes of the source, so a replacement leaves the rest of the file as it is.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

__all__ = ["Code", "Found", "code", "definitions", "occurrences", "replaced"]


@dataclass(frozen=True)
class Code:
    """A parsed piece of code: an expression, or one or several statements.

    Parameters
    ----------
    text
        Its source, without line breaks at the ends.
    expression
        The expression; None if the text is not one.
    statements
        The statements; an expression is also one statement. None if the text is only an expression.
    """

    text: str
    expression: ast.expr | None
    statements: tuple[ast.stmt, ...] | None


@dataclass(frozen=True)
class Found:
    """A place where a piece of code occurs.

    Parameters
    ----------
    first, last
        The nodes that it begins and ends with: one expression, or the statements at the ends of a run.
    fills_its_body
        Whether it is a run of statements that is all there is in its body.
    """

    first: ast.expr | ast.stmt
    last: ast.expr | ast.stmt
    fills_its_body: bool = False


def code(text: str) -> Code:
    """Parse ``text``, which may be empty; an expression may have line breaks without brackets around it.

    Raises
    ------
    SyntaxError
        It is neither an expression nor statements.
    """
    text = text.strip("\n")
    expression = statements = None
    if text:
        try:
            expression = ast.parse(f"({text}\n)", mode="eval").body
        except SyntaxError:
            expression = None
    try:
        statements = tuple(ast.parse(text).body)
    except SyntaxError:
        if expression is None:
            raise
    return Code(text, expression, statements)


@cache
def definitions(source: bytes) -> dict[str, tuple[ast.stmt, ...]]:
    """What ``source`` defines, by qualified name: functions, classes, methods, and constants outside of functions.

    A name has several nodes if it is defined several times, as a property with a setter is.
    """
    found: dict[str, list[ast.stmt]] = {}

    def look(node: ast.AST, prefix: str, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(prefix + child.name, []).append(child)
                look(child, f"{prefix}{child.name}.", in_function or not isinstance(child, ast.ClassDef))
            elif isinstance(child, ast.Assign | ast.AnnAssign) and not in_function:
                for target in child.targets if isinstance(child, ast.Assign) else [child.target]:
                    if isinstance(target, ast.Name):
                        found.setdefault(prefix + target.id, []).append(child)
            elif not isinstance(child, ast.expr):
                look(child, prefix, in_function)

    look(ast.parse(source), "", in_function=False)
    return {name: tuple(nodes) for name, nodes in found.items()}


def occurrences(within: ast.stmt, right: Code, as_expression: bool) -> list[Found]:
    """Where ``right`` occurs in ``within``, which may be all of it; the parts of an f-string are not searched."""
    nodes = _nodes(ast.Module(body=[within], type_ignores=[]))
    if as_expression:
        kind, wanted = type(right.expression), ast.dump(right.expression)
        return [Found(node, node) for node in nodes if type(node) is kind and ast.dump(node) == wanted]
    run = [ast.dump(statement) for statement in right.statements]
    return [found for node in nodes for found in _runs(node, run)]


def replaced(source: bytes, found: Found, wrong: Code, as_expression: bool) -> bytes:
    """The ``source`` with ``wrong`` where something was ``found``."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    decorators = getattr(found.first, "decorator_list", [])
    first_line = min([found.first.lineno, *(decorator.lineno for decorator in decorators)])
    begin = starts[first_line - 1] + found.first.col_offset
    end = starts[found.last.end_lineno - 1] + found.last.end_col_offset
    if as_expression:
        text = f"({wrong.text})"
    else:
        text = textwrap.indent(wrong.text, " " * found.first.col_offset).lstrip(" ")
        text = text or ("pass" if found.fills_its_body else "")
    return source[:begin] + text.encode() + source[end:]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and what it holds, but for the parts of f-strings, whose positions depend on Python's version."""
    waiting = [node]
    while waiting:
        yield (current := waiting.pop())
        if not isinstance(current, ast.JoinedStr):
            waiting.extend(ast.iter_child_nodes(current))


def _runs(node: ast.AST, wanted: list[str]) -> Iterator[Found]:
    """The runs of statements directly in ``node`` that look as ``wanted``; an ``elif`` is not a statement."""
    for field in ("body", "orelse", "finalbody"):
        body = getattr(node, field, None)
        if not isinstance(body, list) or (field == "orelse" and _is_elif(node, body)):
            continue
        shapes = [ast.dump(statement) for statement in body]
        for i in range(len(body) - len(wanted) + 1):
            if shapes[i : i + len(wanted)] == wanted:
                yield Found(body[i], body[i + len(wanted) - 1], len(wanted) == len(body))


def _is_elif(node: ast.AST, orelse: list[ast.stmt]) -> bool:
    """Whether ``orelse`` is an ``elif`` of ``node``, which stands as far left as its ``if``."""
    return isinstance(node, ast.If) and len(orelse) == 1 and orelse[0].col_offset == node.col_offset
