"""Bugs of the OpenVINO back end. Most are seen only where OpenVINO is installed, and are in the list only there."""

from __future__ import annotations

from importlib.util import find_spec

from planting import Bug

__all__ = ["BUGS"]

WITHOUT, WITH, REFUSED = ("test_openvino_missing",), ("test_openvino",), ("test_openvino_refusals",)

_ANYWHERE = (
    Bug(
        "threads-of-openvino-ignored",
        "runtime:settings",
        "chosen if threads is None else chosen | {'INFERENCE_NUM_THREADS': threads}",
        "chosen",
        "OpenVINO takes all cores, however few threads were asked for.",
        WITHOUT,
    ),
    Bug(
        "any-openvino-taken",
        "check_version",
        "tuple(int(part) for part in re.findall(r'\\d+', version)[:2]) < oldest",
        "False",
        "A version whose attention takes other inputs is run.",
        WITHOUT,
    ),
)

_WITH_OPENVINO = (
    Bug(
        "masks-of-tokens-taken-for-masks-of-columns",
        "_reads_tokens",
        "node.get_type_name() == 'Parameter' and 'input_ids' in node.output(0).get_names()",
        "False",
        "A mask that depends on what the tokens are is run without what it says of them.",
        REFUSED,
    ),
    Bug(
        "fork-without-the-last-block",
        "OpenVinoProvider.fork",
        "-(-length // BLOCK)",
        "length // BLOCK",
        "A forked row has not the positions of a block that its source fills in part.",
        WITH,
    ),
    Bug(
        "first-blocks-for-every-range-of-rows",
        "OpenVinoProvider._choose",
        "np.arange(rows.start * blocks, rows.stop * blocks, dtype=np.int32)",
        "np.arange(count * blocks, dtype=np.int32)",
        "A call for the last rows reads and writes the state of the first ones.",
        WITH,
    ),
    Bug(
        "rows-of-the-call-before",
        "OpenVinoProvider._forward",
        "(rows, width) != self._chosen",
        "self._chosen is None or (len(rows), width) != (len(self._chosen[0]), self._chosen[1])",
        "A call for as many other rows reads and writes the state of those of the call before.",
        WITH,
    ),
    Bug(
        "sliding-window-dropped",
        "_Paging._attend",
        "scalar(reach)",
        "scalar(0)",
        "Slots attend to columns that a sliding window hides.",
        WITH,
    ),
    Bug(
        "scale-of-attention-dropped",
        "_Paging._attend",
        "size**-0.5 if attention.scale is None else attention.scale",
        "size**-0.5",
        "A model with a scale of its own gives other logits.",
        WITH,
    ),
    Bug(
        "masks-taken-on-trust",
        "Contexts._ask",
        "not np.array_equal(allowed(start, self._width), expected)",
        "False",
        "A graph with a mask of another kind runs as if it were causal.",
        REFUSED,
    ),
    Bug(
        "attributes-of-attention-ignored",
        "reading:_attention",
        "len(inputs) != 4 or unlike",
        "len(inputs) != 4",
        "A model with a softcap runs without it.",
        REFUSED,
    ),
    Bug(
        "columns-from-anywhere",
        "reading:_written",
        "first.get_type_name() == 'Constant' and (not first.data.any()) and ('kv_length' in last.get_names())",
        "True",
        "An attention over other columns than the first ones is run over the first ones.",
        REFUSED,
    ),
    Bug(
        "caches-rounded",
        "runtime:settings",
        "chosen if threads is None else chosen | {'INFERENCE_NUM_THREADS': threads}",
        "chosen | {'KV_CACHE_PRECISION': 'u8', 'INFERENCE_NUM_THREADS': threads or 1}",
        "Caches are kept in 8 bits.",
        WITH,
    ),
)

BUGS = _ANYWHERE if find_spec("openvino") is None else (*_ANYWHERE, *_WITH_OPENVINO)
