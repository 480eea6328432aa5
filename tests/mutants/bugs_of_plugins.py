"""Bugs of plugins of ONNX Runtime, and of the graphs that are rewritten for them."""

from planting import Bug

__all__ = ["BUGS"]

PLUGINS, GRAPHS = ("test_plugins",), ("test_portable_graphs",)

BUGS = (
    Bug(
        "inputs-bound-once",
        "HostMemoryBinding.run",
        "for name, bound in self._of_rows.items():\n    self._binding.bind_input(name, *_HOST, *bound)",
        "for name, bound in self._of_rows.items():\n    if self._bound.get(name) != bound[1:]:\n"
        "        self._binding.bind_input(name, *_HOST, *bound)\n        self._bound[name] = bound[1:]",
        "A plugin computes with the tokens, starts and caches of its first call in all later ones.",
        PLUGINS,
    ),
    Bug(
        "bfloat16-beside-plugins-as-integers",
        "HostMemoryBinding._bind",
        "self._told.get(name, dtype)",
        "dtype",
        "Caches of bfloat16 are bound as the integers that hold them, which no plugin takes.",
        ("test_ort_half",),
    ),
    Bug(
        "nodes-of-plugins-on-the-cpu-let-pass",
        "plugin_session:_refuse_nodes_on_the_cpu",
        "{operator: count for operator, count in on_cpu.items() if operator not in SHAPE_OPERATORS}",
        "{}",
        "A plugin without a kernel leaves nodes to the CPU in silence.",
        PLUGINS,
    ),
    Bug(
        "devices-without-hardware-taken",
        "plugins:_usable",
        "[device for device in devices if _VIRTUAL not in device.device.metadata]",
        "devices",
        "A device that only compiles is opened as if it could run.",
        PLUGINS,
    ),
    Bug(
        "device-memory-with-several-rows",
        "plugin:open",
        "plugin.memory and rows == 1",
        "plugin.memory",
        "Rows of a cache are looked for behind a handle, which is no address.",
        PLUGINS,
    ),
    Bug(
        "constants-of-rewritten-graphs-always-float32",
        "_Rewriting._number",
        "self._types[like].elem_type if like in self._types else self._onnx.TensorProto.FLOAT",
        "self._onnx.TensorProto.FLOAT",
        "A rewritten graph in half precision multiplies it by float32, which no runtime opens.",
        GRAPHS,
    ),
    Bug(
        "rings-not-closed",
        "_Rewriting._tensor_scatter",
        "if mode == 'circular':\n    length = self._once('Gather', self._once('Shape', past), self._integer(rank - 2), axis=0)\n"
        "    column = self._remainder(column, length)",
        "",
        "What is written beyond the end of a ring does not go to its beginning.",
        GRAPHS,
    ),
    Bug(
        "softcap-left-out-of-rewritten-attention",
        "_Rewriting._attention",
        "attributes.get('softcap', 0.0)",
        "0.0",
        "A model with a softcap runs without it.",
        GRAPHS,
    ),
    Bug(
        "infinity-is-not-a-number",
        "_Rewriting._is_nan",
        "self._op('And', self._op('Not', below), self._op('Not', above), output=node.output[0])",
        "self._op('Not', self._op('And', below, above), output=node.output[0])",
        "Logits that are numbers are refused as NaN.",
        GRAPHS,
    ),
)
