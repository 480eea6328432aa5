"""Building and saving ONNX graphs.

A `GraphBuilder` collects nodes and constants and names them; `save_graph` refuses a graph that ONNX's own checker or
shape inference refuses, and writes the others atomically. `write_graph` does so for graphs of many weights, which it keeps in
a file beside the graph.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling import __version__
from coupled_sampling.arguments import in_one_line
from coupled_sampling.bundles import onnx_package
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, OutputError
from coupled_sampling.export.graphs.storage import TensorFile, stored_type
from coupled_sampling.fields import check_is, check_path

__all__ = ["OPSET", "GraphBuilder", "load_graph", "require_onnx", "save_graph", "write_graph"]

OPSET = 24
"""Version of the default operator set: the first with TensorScatter."""

INLINE_LIMIT = 2**26
"""Bytes of weights up to which they are kept in the graph itself; protobuf ends at 2^31."""

PRODUCER = "coupled-sampling"


def require_onnx() -> Any:
    """The module ``onnx``.

    Raises
    ------
    MissingDependency
        It is not installed, or does not know opset 24.
    """
    onnx = onnx_package.require_onnx("writing graphs")
    if onnx.defs.onnx_opset_version() < OPSET:
        raise MissingDependency(
            f"onnx {onnx.__version__} knows operator sets up to {onnx.defs.onnx_opset_version()}, expected {OPSET} or "
            "more: pip install --upgrade 'coupled-sampling[export]'"
        )
    return onnx


def load_graph(path: str | Path) -> Any:
    """The ``onnx.ModelProto`` of a file. What lies in a second file is not read.

    Raises
    ------
    BundleError
        It is no ONNX graph, or damaged.
    MissingDependency
        ``onnx`` is not installed.
    """
    onnx, path = require_onnx(), Path(path)
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export the bundle again") from error
    except Exception as error:  # protobuf's have no base class but this
        raise BundleError(f"{path} is no ONNX graph ({in_one_line(error)}); export the bundle again") from error


class GraphBuilder:
    """An ONNX graph under construction. Values are referred to by name; constants and nodes are named for readers.

    Parameters
    ----------
    tensors
        Where to write large weights to as soon as they are known; None keeps all in the graph.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.graphs.builder import GraphBuilder
    >>> graph = GraphBuilder()
    >>> x = graph.input("x", "float32", ["B", 3])
    >>> y = graph.output("y", "float32", ["B", 3])
    >>> _ = graph.op("Mul", x, graph.constant("two", np.array(2, np.float32)), name=y)
    >>> model = graph.build("doubled", "Twice its input.", {"format": "an example"})
    >>> [node.op_type for node in model.graph.node]
    ['Mul']
    """

    def __init__(self, tensors: TensorFile | None = None) -> None:
        self._onnx = require_onnx()
        self._tensors = tensors
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._written: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._domains = {""}
        self._scope = ""

    def scope(self, prefix: str) -> None:
        """Begin the names of what follows with ``prefix``."""
        self._scope = prefix

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A constant; asking again for a name with the same value gives the same constant.

        Raises
        ------
        InvalidArgument
            The name is taken by another value.
        """
        value = np.ascontiguousarray(value) if value.ndim else value
        held = self._constants.setdefault(name, value)
        if held is not value and (
            held.dtype != value.dtype or held.shape != value.shape or held.tobytes() != value.tobytes()
        ):
            raise InvalidArgument(f"constant {name!r} is already defined with another value; give it its own name")
        return name

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """A constant defined once, which goes to the file of large ones if there is one and ``value`` is large.

        Raises
        ------
        InvalidArgument
            The name is taken.
        """
        if name in self._written or name in self._constants:
            raise InvalidArgument(f"weight {name!r} is already defined; refer to it by its name")
        if self._tensors is None or not self._tensors.takes(value):
            return self.constant(name, value)
        self._written[name] = self._external(name, np.ascontiguousarray(value), self._tensors)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant("integers." + "_".join(map(str, values)), np.array(values, np.int64))

    def input(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        """A graph input of type ``dtype``, such as "int64" or "bfloat16"; text in ``shape`` names a symbolic dimension."""
        self._inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        """A graph output; a node must produce it by name."""
        self._outputs.append(self._value(name, dtype, shape))
        return name

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output, called ``name`` if that is given."""
        return self.ops(kind, *inputs, names=(name,), **attributes)[0]

    def ops(self, kind: str, *inputs: str, names: Sequence[str | None], **attributes: Any) -> list[str]:
        """A node with one output for each of ``names``; None makes a name up. ``domain`` is the operator's, if not ONNX's own."""
        node = f"{self._scope}{kind}.{len(self._nodes)}"
        outputs = [f"{node}.{i}" if name is None else name for i, name in enumerate(names)]
        self._domains.add(attributes.get("domain", ""))
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, name=node, **attributes))
        return outputs

    def build(self, name: str, description: str, metadata: Mapping[str, str]) -> Any:
        """The finished ``onnx.ModelProto``, with producer, description and ``metadata`` in it."""
        helper = self._onnx.helper
        constants = [self._onnx.numpy_helper.from_array(value, key) for key, value in self._constants.items()]
        constants += self._written.values()
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, constants, doc_string=description)
        opsets = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in sorted(self._domains)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
            producer_name=PRODUCER,
            producer_version=__version__,
            doc_string=description,
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _external(self, name: str, value: NDArray[Any], tensors: TensorFile) -> Any:
        """The ``onnx.TensorProto`` of a constant that lies in another file."""
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = self._onnx.TensorProto(name=name, data_type=kind, dims=value.shape)
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        for key, text in tensors.write(value).items():
            tensor.external_data.add(key=key, value=text)
        return tensor

    def _value(self, name: str, dtype: str, shape: Sequence[str | int]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(stored_type(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, list(shape))


def save_graph(model: Any, path: str | Path, *, check: bool = True) -> Path:
    """Check ``model``, an ``onnx.ModelProto``, with shape inference, and write it atomically.

    Parameters
    ----------
    model
        The graph.
    path
        Its file. Constants in a second file must lie in the same folder already.
    check
        Whether to check it; False is for graphs that are checked elsewhere.

    Raises
    ------
    InvalidArgument
        ONNX's checker refuses it.
    OutputError
        It cannot be written; nothing half-written is left.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import pixel_graph, save_graph
    >>> save_graph(pixel_graph(np.zeros((16, 2, 2, 1), np.uint8), rows=4, columns=4), "pixels.onnx").name
    'pixels.onnx'
    """
    onnx, path = require_onnx(), check_path("path", path)
    check_is("model", model, onnx.ModelProto)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(model.SerializeToString())
        # By path, since a second file is looked for beside it.
        if check:
            onnx.checker.check_model(str(partial), full_check=True)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that exists and is yours") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"model is not a valid ONNX graph: {in_one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_graph(
    path: str | Path, make: Callable[[TensorFile | None], Any], size: int, inline: bool | None = None
) -> tuple[Path, ...]:
    """Make a graph, check it and write it, with large weights in a file beside it where they are many.

    Parameters
    ----------
    path
        The ONNX file.
    make
        From the file that large weights go to, or None for none, to the ``onnx.ModelProto``.
    size
        About how many bytes its weights take.
    inline
        Whether weights are kept in the graph, or in ``<path>.data`` beside it; None means up to `INLINE_LIMIT` they are.

    Returns
    -------
    tuple of Path
        The files written: ``path``, and ``<path>.data`` if there is one.

    Raises
    ------
    InvalidArgument
        ONNX's checker refuses the graph.
    OutputError
        A file cannot be written. Whatever happens, nothing half-written is left, and what was there before stays until
        all is written; a graph that exists always has its own weights beside it.
    """
    path = Path(path)
    data = path.with_name(f"{path.name}.data")
    inside = size <= INLINE_LIMIT if inline is None else inline
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-", suffix=".partial") as folder:
            partial = Path(folder)
            if inside:
                save_graph(make(None), partial / path.name)
            else:
                with TensorFile(partial / data.name) as tensors:
                    model = make(tensors)
                save_graph(model, partial / path.name)
            path.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
            if not inside:
                (partial / data.name).replace(data)
            (partial / path.name).replace(path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that exists and is yours") from error
    return (path,) if inside else (path, data)
