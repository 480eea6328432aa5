"""Dynamically quantised graphs, rewritten in memory so that nothing of a window is rounded.

``DynamicQuantizeLinear`` takes a scale from all of the call's input, so a draft changes the logits of the tokens before it. `widen`
lets the product take the floats that were to be rounded, and the same weights as floats:

    x -> DynamicQuantizeLinear -> (q, s, z);  MatMulInteger(q, W, z, w) * (s * t)   becomes   MatMul(x, W - w) * (1 * t)

The result is another model than the one that was exported, by what the rounding did. Weights stay as they are, in their own files,
too: ONNX Runtime widens them when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from coupled_sampling.backends.foreign.rewriting import SOURCE, branches_of
from coupled_sampling.bundles.onnx_package import require_onnx
from coupled_sampling.errors import BundleError

__all__ = ["widen"]

MOVES = frozenset({"Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""What only moves the numbers of its first input, so that it does for floats what it does for integers."""

Key: TypeAlias = tuple[int, str]
"""A value: the number of the graph that has it, and its name there. Two branches may use one name for two values."""


def widen(model: Any) -> int:
    """Rewrite what takes an input that is quantised per call, in place; how many there were. What cannot be rewritten is left.

    Raises
    ------
    BundleError
        The graph is damaged.
    """
    return _Widening(model).run()


class _Scope:
    """A graph, or a branch of one, and where the names that it uses are defined."""

    def __init__(self, graph: Any, number: int, outer: _Scope | None) -> None:
        self.graph, self.number, self.outer = graph, number, outer
        self.nodes = list(graph.node)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.defined = {*self.makers, *self.stored, *(value.name for value in graph.input)}
        self.first: list[Any] = []
        """Nodes to come before the others."""

    def owner(self, name: str) -> _Scope:
        """The graph that defines ``name``."""
        return self if name in self.defined or self.outer is None else self.outer.owner(name)

    def key(self, name: str) -> Key:
        return self.owner(name).number, name


def _scopes(graph: Any, outer: _Scope | None = None, found: list[_Scope] | None = None) -> list[_Scope]:
    """A graph and the branches within it."""
    found = [] if found is None else found
    scope = _Scope(graph, len(found), outer)
    found.append(scope)
    for node in scope.nodes:
        for branch in branches_of(node):
            _scopes(branch, scope, found)
    return found


class _Use(NamedTuple):
    """A node that takes a value as its input number ``position``."""

    scope: _Scope
    node: Any
    position: int


class _Group(NamedTuple):
    """What takes the integers of one DynamicQuantizeLinear."""

    products: dict[int, _Use]
    """By the node's ``id``."""
    moves: list[_Use]
    """Nodes that put the integers into other places."""

    def values(self) -> set[Key]:
        """The integers in these places."""
        return {use.scope.key(use.node.output[0]) for use in self.moves}


class _Known(NamedTuple):
    """Which inputs of a node say how its integers were made."""

    zero: int
    scales: tuple[int, ...] = ()
    """One of them is the integers' scale."""


PRODUCTS: Mapping[str, Mapping[int, _Known]] = {
    "MatMulInteger": {0: _Known(2), 1: _Known(3)},
    "ConvInteger": {0: _Known(2)},
    # Products commute, so ONNX Runtime writes the two scales in either order.
    "MatMulIntegerToFloat": {0: _Known(4, (2, 3))},
    "DequantizeLinear": {0: _Known(2, (1,))},
}
"""What can take such integers, and as which of its inputs."""


LEAST = {SOURCE: (1, 3), "MatMulInteger": (2, 1), "ConvInteger": (2, 1), "DequantizeLinear": (2, 1)}
LEAST |= {"MatMulIntegerToFloat": (4, 1), "DynamicQuantizeMatMul": (3, 1)} | dict.fromkeys(MOVES, (1, 1))
"""How many inputs and outputs a node of some kinds has at least."""


def _check_node(node: Any) -> None:
    """Refuse a node of a damaged graph that has not what its kind has."""
    inputs, outputs = LEAST.get(node.op_type, (0, 0))
    if len(node.input) < inputs or len(node.output) < outputs:
        raise BundleError(
            f"node {node.name!r} is a {node.op_type} of {len(node.input)} inputs and {len(node.output)} outputs: the graph is "
            "damaged; "
            "download or export the file again"
        )


class _Widening:
    """`widen` at work."""

    def __init__(self, model: Any) -> None:
        self.onnx = require_onnx("widening a quantised graph")
        self.scopes = _scopes(model.graph)
        self.uses: dict[Key, list[_Use]] = {}
        for scope in self.scopes:
            for node in scope.nodes:
                _check_node(node)
                for position, name in enumerate(node.input):
                    self.uses.setdefault(scope.key(name), []).append(_Use(scope, node, position))
        self.results = {scope.key(value.name) for scope in self.scopes for value in scope.graph.output}
        self.floats: dict[Key, str] = {}
        """By value of integers: the floats that they were made of. Values that were moved keep their names, as floats."""
        self.instead: dict[int, list[Any]] = {}
        """By a node's ``id``: what takes its place."""
        self.shifted: dict[tuple[Key, Key | None], str] = {}
        """By integers and zero point: the floats made of them."""
        self.retyped: set[Key] = set()
        """Values that were integers and are floats, or are no more."""
        self.count = 0

    def run(self) -> int:
        sources = [(scope, node) for scope in self.scopes for node in scope.nodes if node.op_type == SOURCE]
        groups = {id(node): self._group(scope, node) for scope, node in sources}
        self._drop_what_meets_others(groups)
        products: dict[int, _Use] = {}
        for scope, node in sources:
            group = groups[id(node)]
            if group is None:
                continue
            products |= group.products
            self.floats |= {key: key[1] for key in group.values()}
            self.floats[scope.key(node.output[0])] = node.input[0]
            self.retyped |= {scope.key(node.output[0]), *group.values()}
            for use in group.moves:
                use.node.input[0] = self.floats[use.scope.key(use.node.input[0])]
            # Whatever is multiplied by the scale stays right: the scale of what was not rounded is 1.
            self.instead[id(node)] = [self._node("Constant", [], [node.output[1]], value=self._tensor(1.0))]
        for use in products.values():
            self._rewrite(use)
        for scope in self.scopes:
            for node in scope.nodes:
                if node.op_type == "DynamicQuantizeMatMul":
                    left, right, scale, zero, bias = [*node.input, "", ""][:5]
                    use = _Use(scope, node, 0)
                    self.instead[id(node)] = self._scaled_product(use, left, right, scale, zero, bias)
                    self.count += 1
        self._write()
        return self.count

    def _group(self, scope: _Scope, source: Any) -> _Group | None:
        """What takes the output of ``source``; None if something does that is not known here."""
        group, pending, seen = _Group({}, []), [scope.key(source.output[0])], set()
        scale, zero = (scope.key(name) for name in source.output[1:3])
        while pending:
            key = pending.pop()
            if key in self.results or key in seen:
                return None
            seen.add(key)
            for use in self.uses.get(key, ()):
                kind = use.node.op_type
                if kind in MOVES and use.position == 0:
                    group.moves.append(use)
                    pending.append(use.scope.key(use.node.output[0]))
                elif self._takes_off(use, scale, zero) and self._can_be_rewritten(use):
                    group.products[id(use.node)] = use
                else:
                    return None
        if {scale, zero} & self.results:
            return None
        others = [use for use in self.uses.get(zero, ()) if id(use.node) not in group.products]
        others += [
            use for use in self.uses.get(scale, ()) if id(use.node) not in group.products and use.node.op_type != "Mul"
        ]
        return None if others else group

    def _takes_off(self, use: _Use, scale: Key, zero: Key) -> bool:
        """Whether a node makes of integers, by their own ``scale`` and ``zero`` point, what they were made of."""
        known = PRODUCTS.get(use.node.op_type, {}).get(use.position)
        if known is None:
            return False
        keys = [use.scope.key(name) for name in [*use.node.input, *[""] * 5]]
        return keys[known.zero] == zero and (not known.scales or scale in [keys[at] for at in known.scales])

    def _can_be_rewritten(self, use: _Use) -> bool:
        """Whether nothing sees that a product of integers becomes one of floats, and its zero points can be taken off."""
        kind, names = use.node.op_type, [*use.node.input, "", ""]
        if not kind.endswith("Integer"):
            return True
        key = use.scope.key(use.node.output[0])
        if key in self.results or not all(self._makes_floats(after.node) for after in self.uses.get(key, ())):
            return False
        # Zero points by row of a left matrix, or by filter of unknown rank, would be taken off along another axis.
        if kind == "ConvInteger":
            return self._is_single(use.scope, names[3]) or names[1] in use.scope.owner(names[1]).stored
        return self._is_made(use.scope, names[0]) or self._is_single(use.scope, names[2])

    def _makes_floats(self, node: Any) -> bool:
        """Whether a node is a Cast to a floating type; one to integers would cut off what floats have behind the point."""
        types = self.onnx.TensorProto
        floats = (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
        return node.op_type == "Cast" and any(a.name == "to" and a.i in floats for a in node.attribute)

    def _is_single(self, scope: _Scope, name: str) -> bool:
        """Whether a zero point is one for all, or none."""
        stored = scope.owner(name).stored.get(name)
        return not name or (stored is not None and all(size == 1 for size in stored.dims))

    def _drop_what_meets_others(self, groups: dict[int, _Group | None]) -> None:
        """A product of two quantised inputs can be rewritten only if both can."""
        changed = True
        while changed:
            changed = False
            known = {key for group in groups.values() if group for key in group.values()}
            for scope in self.scopes:
                known |= {scope.key(n.output[0]) for n in scope.nodes if groups.get(id(n)) is not None}
            for number, group in groups.items():
                for use in group.products.values() if group else ():
                    for position in PRODUCTS[use.node.op_type]:
                        name = use.node.input[position]
                        if self._is_made(use.scope, name) and use.scope.key(name) not in known:
                            groups[number], changed = None, True

    def _is_made(self, scope: _Scope, name: str) -> bool:
        """Whether a value is quantised per call, directly or moved."""
        seen: set[Key] = set()
        while (key := scope.key(name)) not in seen:  # a damaged graph may go round
            seen.add(key)
            scope = scope.owner(name)
            maker = scope.makers.get(name)
            if maker is None or maker.op_type not in MOVES:
                return maker is not None and maker.op_type == SOURCE
            name = maker.input[0]
        return False

    def _rewrite(self, use: _Use) -> None:
        scope, node = use.scope, use.node
        inputs = [*node.input, *[""] * 7]
        first = self.floats.get(scope.key(inputs[0]))
        self.count += 1
        if node.op_type == "DequantizeLinear":
            self.instead[id(node)] = [self._node("Identity", [first], node.output)]
            return
        if node.op_type == "MatMulIntegerToFloat":
            scales = f"{node.output[0]}_scales"
            both = self._node("Mul", inputs[2:4], [scales])  # that of the activations, whichever it is, is 1
            self.instead[id(node)] = [
                both,
                *self._scaled_product(use, first, inputs[1], scales, inputs[5], inputs[6]),
            ]
            return
        before: list[Any] = []
        operands = [
            self.floats.get(scope.key(name)) or self._shifted(use, name, zero, before)
            for name, zero in zip(inputs[:2], inputs[2:4], strict=True)
        ]
        made = self._node(node.op_type.removesuffix("Integer"), operands, node.output)
        made.attribute.extend(node.attribute)
        self.retyped.add(scope.key(node.output[0]))
        self.instead[id(node)] = [*before, made]

    def _scaled_product(self, use: _Use, left: Any, right: str, scale: str, zero: str, bias: str) -> list[Any]:
        """left @ (right - zero) * scale + bias, as the output of the node."""
        before: list[Any] = []
        weights, out = self._shifted(use, right, zero, before), use.node.output[0]
        product, scaled = f"{out}_product", f"{out}_scaled" if bias else out
        before.append(self._node("MatMul", [left, weights], [product]))
        before.append(self._node("Mul", [product, scale], [scaled]))
        return [*before, self._node("Add", [scaled, bias], [out])] if bias else before

    def _shifted(self, use: _Use, name: str, zero: str, before: list[Any]) -> str:
        """Integers less their zero point, as floats. Of stored integers they are made where these are stored, and made once."""
        owner = use.scope.owner(name)
        key = (use.scope.key(name), use.scope.key(zero)) if zero else (use.scope.key(name), None)
        is_stored = name in owner.stored and (not zero or zero in owner.stored)
        if is_stored and key in self.shifted:
            return self.shifted[key]
        made, nodes = f"{name}_widened{len(self.shifted)}", []
        self.shifted[key] = made
        floats = f"{made}_whole" if zero else made
        nodes.append(self._node("Cast", [name], [floats], to=self.onnx.TensorProto.FLOAT))
        if zero:
            nodes.append(self._node("Cast", [zero], [f"{made}_zero"], to=self.onnx.TensorProto.FLOAT))
            taken = f"{made}_zero"
            if use.node.op_type == "ConvInteger" and not self._is_single(use.scope, zero):
                shape = [-1, *[1] * (len(owner.stored[name].dims) - 1)]
                nodes.append(self._node("Constant", [], [f"{made}_shape"], value=self._tensor(shape)))
                nodes.append(self._node("Reshape", [taken, f"{made}_shape"], [f"{made}_zeros"]))
                taken = f"{made}_zeros"
            nodes.append(self._node("Sub", [floats, taken], [made]))
        (owner.first if is_stored else before).extend(nodes)
        return made

    def _tensor(self, value: Any) -> Any:
        array = np.array(value)
        return self.onnx.numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array)

    def _node(self, kind: str, inputs: Any, outputs: Any, **attributes: Any) -> Any:
        return self.onnx.helper.make_node(kind, list(inputs), list(outputs), **attributes)

    def _write(self) -> None:
        """Put the new nodes into the graphs. Types that were noted for values that are other ones now are struck out."""
        for scope in reversed(self.scopes):  # a branch before the graph whose node it is in
            nodes = list(scope.first)
            for node in scope.nodes:
                nodes += self.instead.get(id(node), [node])
            made = self.onnx.GraphProto()
            made.node.extend(nodes)
            del scope.graph.node[:]
            scope.graph.node.extend(made.node)
            noted = [value for value in scope.graph.value_info if (scope.number, value.name) not in self.retyped]
            del scope.graph.value_info[:]
            scope.graph.value_info.extend(noted)
