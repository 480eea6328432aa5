"""Write a copy of a bundle whose step graphs WebGPU computes nearly whole: python portable.py fashion FOLDER

The exporter's graphs have operators that ONNX Runtime's WebGPU provider lacks. Those would be computed on the CPU, and the caches
would cross over to it and back in every step. In the copy they are replaced by ones that it has; names, inputs, outputs and
weights stay, so that the copy is a bundle like any other. Only graphs that the page runs are rewritten: plain ones.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from coupled_sampling import open_bundle
from coupled_sampling.bundles import write_manifest
from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.bundles.portable_graphs import portable_graph
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.errors import CoupledSamplingError
from coupled_sampling.export.graphs.builder import require_onnx


def write_portable(source: str | Path, out: Path, *, force: bool = False) -> int:
    """Write the bundle ``out`` from ``source``, the name or folder of one; returns how many graphs were rewritten."""
    onnx = require_onnx()

    bundle = open_bundle(source)
    plain = [
        graph.file
        for graph in bundle.manifest.step_graphs
        if not (graph.warped or graph.guided or graph.corrected) and graph.noise == "ring"
    ]
    with whole_folder(out, check_replaceable(out, force=force)) as folder:
        for name in bundle.manifest.files:
            shutil.copyfile(bundle.folder / name, folder / name)
        for name in plain:
            model = onnx.load(folder / name, load_external_data=False)
            onnx.save(portable_graph(model), folder / name)
        files = dict(bundle.manifest.files) | {name: file_record(folder / name) for name in plain}
        shutil.copyfile(bundle.folder / MANIFEST, folder / MANIFEST)
        write_manifest(folder, replace(bundle.manifest, files=files))
    return len(plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="name or folder of a bundle with step graphs")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    arguments = parser.parse_args()
    try:
        count = write_portable(arguments.bundle, arguments.out, force=arguments.force)
    except CoupledSamplingError as error:
        print(f"portable.py: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.out}, {count} graphs rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
