"""Write a copy of a bundle whose step graphs WebGPU computes nearly whole: python portable.py fashion FOLDER

The exporter's graphs have operators that ONNX Runtime's WebGPU provider lacks. Those would be computed on the CPU, and the caches
would cross over to it and back in every step. In the copy they are replaced by ones that it has; names, inputs, outputs and
weights stay, so that the copy is a bundle like any other. Only graphs that the page runs are rewritten: plain ones.

Weights in half precision need an adapter with ``shader-f16``. For others ``--float32`` widens those of the rewritten graphs, which
takes twice the bytes and changes no number.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from coupled_sampling import open_bundle
from coupled_sampling.bundles import write_manifest
from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.bundles.portable_graphs import portable_graph
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.errors import BundleError, CoupledSamplingError
from coupled_sampling.export.graphs.builder import require_onnx

WIDENED = "weights-float32.bin"


class Widened:
    """Weights of half precision as float32 in a file of their own, each of them once for all graphs."""

    def __init__(self, folder: Path) -> None:
        self._onnx, self._folder, self._written = require_onnx(), folder, {}

    def take(self, model: Any) -> None:
        """Let ``model`` have its weights of half precision from there. Casts that widened them become casts to what they are."""
        types = self._onnx.TensorProto
        for tensor in model.graph.initializer:
            if tensor.data_type in (types.FLOAT16, types.BFLOAT16):
                offset, length = self._place(tensor)
                tensor.ClearField("raw_data")
                tensor.data_type = types.FLOAT
                del tensor.external_data[:]
                tensor.data_location = types.EXTERNAL
                for key, value in (("location", WIDENED), ("offset", str(offset)), ("length", str(length))):
                    tensor.external_data.add(key=key, value=value)
        del model.graph.value_info[:]

    def _place(self, tensor: Any) -> tuple[int, int]:
        if tensor.name not in self._written:
            # Graphs of a bundle have weights of the same names.
            copied = type(tensor).FromString(tensor.SerializeToString())
            wide = self._onnx.numpy_helper.to_array(copied, str(self._folder)).astype("<f4").tobytes()
            with (self._folder / WIDENED).open("ab") as file:
                self._written[tensor.name] = file.tell(), len(wide)
                file.write(wide)
        return self._written[tensor.name]


def write_portable(source: str | Path, out: Path, *, float32: bool = False, force: bool = False) -> int:
    """Write the bundle ``out`` from ``source``, the name or folder of one; returns how many graphs were rewritten."""
    onnx = require_onnx()

    bundle = open_bundle(source)
    name, dtype = bundle.manifest.name, bundle.manifest.window_graph.dtype
    if dtype != "float32":
        raise BundleError(f"{name} computes in {dtype}, which the page does not; export it with --compute float32")
    plain = [
        graph.file
        for graph in bundle.manifest.step_graphs
        if not (graph.warped or graph.guided or graph.corrected) and graph.noise == "ring"
    ]
    if not plain:
        raise BundleError(f"{name} has no plain step graphs; make a copy that has some: coupled-sampling step-graphs")
    with whole_folder(out, check_replaceable(out, force=force)) as folder:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.folder / name, folder / name)
        widened = Widened(folder)
        for name in plain:
            model = portable_graph(onnx.load(folder / name, load_external_data=False))
            if float32:
                widened.take(model)
            onnx.save(model, folder / name)
        written = [*plain, *([WIDENED] if (folder / WIDENED).exists() else [])]
        files = dict(bundle.manifest.files) | {name: file_record(folder / name) for name in written}
        shutil.copyfile(bundle.folder / MANIFEST, folder / MANIFEST)
        write_manifest(folder, replace(bundle.manifest, files=files))
    return len(plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="name or folder of a bundle with step graphs")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--float32", action="store_true", help="widen weights, for adapters without shader-f16")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    arguments = parser.parse_args()
    try:
        count = write_portable(arguments.bundle, arguments.out, float32=arguments.float32, force=arguments.force)
    except CoupledSamplingError as error:
        print(f"portable.py: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.out}, {count} graphs rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
