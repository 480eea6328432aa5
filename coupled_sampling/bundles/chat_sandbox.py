"""What chat templates run in: Jinja's sandbox, with an end.

Jinja's own sandbox keeps a template from changing and reaching things, and not from running for ever or from taking all memory: two
loops in each other over 100,000 numbers, a text doubled forty times. So every turn of a loop and every call is counted here, and
what makes texts longer is asked how long before it does. A template that writes a conversation needs a few steps for a message.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from coupled_sampling.errors import MissingDependency

__all__ = ["MOST_STEPS", "MOST_TEXT", "make_environment"]

MOST_STEPS = 300_000
"""Turns of loops and calls in one conversation."""

MOST_SECONDS = 5
"""In which they have to be done; a turn may be slow."""

MOST_TEXT = 2**26
"""Characters, or entries of lists, that are made on the way."""

MOST_BITS = 2**16
"""Of a whole number; none that is shown has a third of them."""

MOST_COLUMNS = 10**6
"""No argument of a filter or a method is a larger number."""

_WIDE = re.compile(r"\d{6,}")
"""A width in a format; no line has so many columns."""

_ITEM_BY_ITEM = {"batch", "dictsort", "groupby", "items", "list", "map", "max", "min", "reject", "rejectattr", "select"}
_ITEM_BY_ITEM |= {"selectattr", "slice", "sort", "sum", "unique", "urlencode", "xmlattr"}
"""Filters that take a list, or a text, apart."""

_WRITING = {"pprint", "string", "tojson", "urlize", "e", "escape", "forceescape"}
"""Filters that write any value as a text."""

_INDENT = 100
"""Columns by which a level of JSON is indented."""

_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")


def make_environment() -> Any:
    """What one conversation is written in, with what transformers gives templates beside Jinja's own.

    Raises
    ------
    MissingDependency
        The package jinja2 is not installed.

    Examples
    --------
    >>> from coupled_sampling.bundles.chat_sandbox import make_environment
    >>> make_environment().from_string("{% for i in range(3) %}{{ i }}{% endfor %}").render()
    '012'
    """
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import SecurityError
    except ImportError as error:
        raise MissingDependency(
            "chat templates need the package jinja2: pip install 'coupled-sampling[text]'"
        ) from error

    class Generation(Extension):  # type: ignore[misc, unused-ignore]
        """``{% generation %}``, which marks replies for training: what is in it is written as it stands."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    limits = _Limits(SecurityError)
    environment = _bounded(limits)(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
    del environment.globals["lipsum"]  # as many paragraphs as one likes
    environment.filters["tojson"] = _to_json
    environment.filters.update({name: limits.guarded(name, plain) for name, plain in environment.filters.items()})
    # What depends on the context is not computed once and for all when a template is compiled.
    environment.filters["_turns"] = jinja2.pass_context(lambda context, items: limits.counted(items))
    environment.filters["_held"] = jinja2.pass_context(lambda context, value: limits.held(value))
    environment.filters["_made"] = jinja2.pass_context(lambda context, value: limits.made(value))
    return environment


def _bounded(limits: _Limits) -> Any:
    """The class of the sandbox, which asks ``limits`` before it does anything."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):  # type: ignore[misc, unused-ignore]
        """The sandbox, with limits."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def _generate(self, source: Any, *rest: Any, **more: Any) -> Any:
            """Jinja's hook before code is made of a template's tree."""
            return super()._generate(_counting(source), *rest, **more)

        def call(self, context: Any, function: Any, /, *args: Any, **more: Any) -> Any:
            limits.step()
            limits.check_call(function, args, more)
            return super().call(context, function, *args, **more)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            limits.check_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> Any:
            wrapped, form = super().wrap_str_format(value), str(getattr(value, "__self__", ""))

            def checked(*args: Any, **more: Any) -> Any:
                limits.check_format(form, (*args, *more.values()))
                return wrapped(*args, **more)

            return None if wrapped is None else checked

    return Bounded


def _to_json(value: Any, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **settings)  # Jinja's own escapes for HTML


def _counting(tree: Any) -> Any:
    """A template's ``tree`` whose loops count their turns, and whose texts, joined or shown, their characters."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def through(name: str, node: Any) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Visitor(NodeTransformer):  # type: ignore[misc, unused-ignore]
        def visit_Concat(self, node: Any) -> Any:  # noqa: N802 - as Jinja calls it
            return through("_made", self.generic_visit(node))

        def visit_List(self, node: Any) -> Any:  # noqa: N802
            return through("_held", self.generic_visit(node))

        visit_Dict = visit_List  # noqa: N815

        def visit_Tuple(self, node: Any) -> Any:  # noqa: N802
            whole = self.generic_visit(node)
            return through("_held", whole) if node.ctx == "load" else whole  # and not what a loop assigns to

        def visit_Output(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            plain = (
                nodes.Const(one.data, lineno=one.lineno) if isinstance(one, nodes.TemplateData) else one
                for one in node.nodes
            )
            node.nodes = [through("_made", one) for one in plain]
            return node

        def visit_For(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            node.iter = through("_turns", node.iter)
            return node

    return Visitor().visit(tree)


class _Limits:
    """Counts what one conversation does. ``error`` is raised where it is too much."""

    def __init__(self, error: type[Exception]) -> None:
        self._error, self._steps, self._length = error, 0, 0
        self._end = time.monotonic() + MOST_SECONDS

    def refuse(self, what: str) -> None:
        raise self._error(f"it makes {what}, which no conversation needs")

    def step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS or time.monotonic() > self._end:
            self.refuse(f"more than {MOST_STEPS} turns and calls, or needs more than {MOST_SECONDS} s")

    def counted(self, items: Any) -> Any:
        """The ``items`` of a loop, each a step; a list stays one, since loops ask for their length."""
        return _Counted(items, self) if isinstance(items, list | tuple | range | str | dict) else self.counting(items)

    def counting(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same, one after the other."""
        for item in items:
            self.step()
            yield item

    def made(self, value: Any) -> Any:
        """A value that is shown, or a text that was put together."""
        self.check_length(self.weight(value))
        return value

    def held(self, value: Any) -> Any:
        """A list or an object that is put together: of lists in lists that are the same, each counts as often as it is there."""
        self.weight(value)
        return value

    def weight(self, *values: Any) -> int:
        """Characters and entries of what ``values`` are as a text, refused where they are too many for one text."""
        self.step()
        total, entries, waiting = 0, 0, list(values)
        while waiting:
            one = waiting.pop()
            if isinstance(one, str | bytes):
                total += len(one)
            elif isinstance(one, int):
                total += one.bit_length() // 3
            elif isinstance(one, list | tuple | dict):
                entries += len(one)
                if entries <= MOST_STEPS:
                    waiting += one
                    waiting += one.values() if isinstance(one, dict) else ()
            if total > MOST_TEXT or entries > MOST_STEPS:
                self.refuse(f"texts and lists of more than {min(MOST_TEXT, MOST_STEPS)} entries")
        return total + entries

    def check_length(self, length: int) -> None:
        """Count a text or a list that is made."""
        self._length += length
        if self._length > MOST_TEXT:
            self.refuse(f"texts and lists of more than {MOST_TEXT} entries")

    def check_entries(self, entries: int) -> None:
        """Refuse a list, or a text that is taken apart, of too many entries."""
        if entries > MOST_STEPS:
            self.refuse(f"lists of more than {MOST_STEPS} entries")

    def check_operator(self, operator: str, left: Any, right: Any) -> None:
        """Refuse an operation whose result would be too long, or a number of too many digits."""
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.check_length(len(left) + len(right))
            self.weight(left, right)
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if hasattr(many, "__len__") and isinstance(times, int):
                    self.check_length(len(many) * times)
                    if isinstance(many, list | tuple):
                        self.check_length(self.weight(many) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            self.check_format(left, [right])
        if operator in "*+" and isinstance(left, int) and isinstance(right, int):
            self.check_bits(left.bit_length() + right.bit_length())

    def check_bits(self, bits: int) -> None:
        """Refuse a whole number of too many digits."""
        if bits > MOST_BITS:
            self.refuse("a number of more digits than anybody reads")

    def check_format(self, form: str, values: Iterable[Any]) -> None:
        """Refuse to write ``values`` into a text that may be too long: a width may stand in the text, or be one of them."""
        if _WIDE.search(form):
            self.refuse("a text of more than 100,000 columns")
        waiting = list(values)
        self.check_length(self.weight(*waiting) * (1 + form.count("{")))
        while waiting:
            one = waiting.pop()
            if isinstance(one, list | tuple):
                waiting += one
            elif isinstance(one, dict):
                waiting += one.values()
            elif "*" in form or form.count("{") > 1:
                self.check_numbers([one])

    def check_call(self, function: Any, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
        """Refuse a method of texts whose result may be too long."""
        given = (*args, *more.values())
        self.check_numbers(given)
        self.weight(*given)  # it may put them into a list or an object
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str | bytes | list):
            self._check_text(name, owner, given)

    def guarded(self, name: str, plain: Any) -> Any:
        """Jinja's filter ``plain``, refused where its result may be too long."""
        places = 1 if getattr(plain, "jinja_pass_arg", None) is not None else 0  # what comes before the value

        def bounded(*args: Any, **more: Any) -> Any:
            given = (*args[places + 1 :], *more.values())
            self.check_numbers(given)
            self._check_text(name, args[places], given)
            self._check_items(name, args[places], given)
            return plain(*args, **more)

        bounded.__dict__.update(getattr(plain, "__dict__", {}))
        return bounded

    def _check_items(self, name: str, value: Any, given: Iterable[Any]) -> None:
        """Refuse a filter that would take apart, or write, what is too large."""
        if name in _ITEM_BY_ITEM:
            self.check_entries(len(value) if hasattr(value, "__len__") else 0)
        elif name in _WRITING:
            self.made(value)
        if name == "sum" and any(isinstance(one, list | tuple) for one in given):
            self.refuse("lists by adding them up")
        if name == "tojson" and any((len(one) if isinstance(one, str) else one) > _INDENT for one in given if one):
            self.refuse(f"an indent of more than {_INDENT}")

    def check_numbers(self, args: Iterable[Any]) -> None:
        """Refuse a width or a count that is too large."""
        for one in args:
            if isinstance(one, int) and abs(one) > MOST_COLUMNS:
                self.refuse(f"something {one} wide or often" if abs(one) < 2**63 else "something endless")

    def _check_text(self, name: str, text: Any, args: tuple[Any, ...]) -> None:
        sizes = [
            len(one) if isinstance(one, str | bytes) else one for one in args if isinstance(one, str | bytes | int)
        ]
        if name == "join":
            pieces = text if not isinstance(text, str | bytes) else args[0] if args else ()
            longest = max(sizes, default=len(text) if isinstance(text, str | bytes) else 0)
            pieces = pieces if hasattr(pieces, "__len__") else ()
            self.check_length(sum(len(one) for one in pieces if isinstance(one, str | bytes)) + longest * len(pieces))
        elif name in ("replace", "indent", "wordwrap"):
            self.check_length((len(str(text)) + 1) * (1 + max(sizes, default=0)))
        elif name == "translate":
            self.check_length(len(text) * (1 + sum(map(self.weight, args))))
        elif name in _PADDING:
            self.check_length(max(sizes, default=0) * (len(str(text)) if name == "expandtabs" else 1))
        elif name in ("format", "format_map"):
            self.check_format(str(text), args)


class _Counted:
    """A list whose items are steps when a loop takes them; it has a length and can be gone through again."""

    def __init__(self, items: Any, limits: _Limits) -> None:
        self._items, self._limits = items, limits

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return self._limits.counting(self._items)
