"""A small `onnxruntime-gpu` for a machine without a network: one GPU's code, compressed, in parts.

    pip download --no-deps --only-binary=:all: --python-version 3.12 onnxruntime-gpu
    python benchmarks/small_onnxruntime_gpu.py make WHEEL PARTS [--architecture sm_90]
    python benchmarks/small_onnxruntime_gpu.py check WHEEL PARTS

and, where it is to run, with the folder PARTS and this repository:

    PYTHONPATH=. python benchmarks/small_onnxruntime_gpu.py join PARTS FOLDER

- ``make`` takes out of the CUDA provider the code for other GPUs (`fatbins` says how) and the kernels that ``--leave-out`` names.
  It leaves out what a session does not need: TensorRT's provider, the library for C, tools. What is left is one xz stream (the
  standard library's lzma) in parts of ``--part-bytes``, with their digests in ``parts.json``. It fails if all together are larger
  than ``--total-bytes``.
- ``check`` joins the parts in a temporary folder and compares that with the wheel: files to the byte, the provider entry by entry.
  Under the Python that the wheel is for it also compares where each places the nodes of the shipped graphs, over CUDA libraries
  that do nothing (tests/standins).
- ``join`` checks the parts, writes a folder for PYTHONPATH, and prints what CUDA libraries it needs.

The default of ``--leave-out`` are kernels for mixtures of experts (ONNX Runtime's MoE and QMoE), two thirds of sm_90's code: these
operators, which no graph of this library has, cannot run there. Names of kernels are read with `zstandard`, a package that ``make``
and ``check`` need, but not ``join``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import re
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fatbins

from coupled_sampling.bundles.files import check_place, whole_folder
from coupled_sampling.errors import BundleError, CoupledSamplingError, InvalidArgument, OutputError

MIXTURES_OF_EXPERTS = "GroupProblemShape|MoeFCGemm"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
NOT_NEEDED = re.compile(
    r"onnxruntime/(backend|datasets|quantization|tools|transformers)/"
    r"|onnxruntime/capi/(libonnxruntime\.so|libonnxruntime_providers_tensorrt\.so)"
    r"|.*(\.h|/RECORD|/)$"  # RECORD, the list of an installed package's files, would be wrong
)
BINDINGS = re.compile(r"onnxruntime/capi/onnxruntime_pybind11_state\.(.+)\.so$")
CONTENTS = "parts.json"
FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}]
BLOCK = 1 << 20


class PartWriter(io.RawIOBase):
    """A file that is cut into files of ``part_bytes`` in ``folder``; ``parts`` says what was written."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self.folder, self.part_bytes = folder, part_bytes
        self.parts: list[dict[str, Any]] = []
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(memoryview(data))
        self._held += data
        while len(self._held) >= self.part_bytes:
            self._put(self.part_bytes)
        return size

    def finish(self) -> None:
        if self._held:
            self._put(len(self._held))

    def _put(self, size: int) -> None:
        name, data = f"part-{len(self.parts):02}", bytes(self._held[:size])
        (self.folder / name).write_bytes(data)
        self.parts.append({"name": name, "bytes": size, "sha256": hashlib.sha256(data).hexdigest()})
        del self._held[:size]


class PartReader(io.RawIOBase):
    """Files one after the other, read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths, self._file = iter(paths), io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not (count := self._file.readinto(into)):
            path = next(self._paths, None)
            if path is None:
                return 0
            self._file = io.BytesIO(path.read_bytes())
        return count


def small_files(wheel: zipfile.ZipFile, architecture: int, left_out: str) -> Iterator[tuple[str, bytes]]:
    """What the small wheel has: path and content. Python's files come first, so that the largest does not part what is alike."""
    names = [name for name in wheel.namelist() if not NOT_NEEDED.match(name)]
    if PROVIDER not in names or not any(BINDINGS.match(name) for name in names):
        raise BundleError(f"{wheel.filename} has no {PROVIDER}; pass a wheel of onnxruntime-gpu for Linux")
    for name in sorted(names, key=lambda name: (name.endswith(".so"), name)):
        content = wheel.read(name)
        if name == PROVIDER:
            small = bytearray(content)
            fatbins.keep_only(small, architecture, left_out)
            content = bytes(small)
        yield name, content


def make(
    wheel: Path, parts: Path, architecture: str, left_out: str, part_bytes: int, total_bytes: int
) -> dict[str, Any]:
    """Write the folder ``parts``, which must not be there; what it holds, as in its ``parts.json``."""
    number = architecture_number(architecture)
    check_free(parts)
    for name, value in (("--part-bytes", part_bytes), ("--total-bytes", total_bytes)):
        if value < 1:
            raise InvalidArgument(f"{name} is {value}, expected a number of bytes from 1 on")
    try:
        re.compile(left_out)
    except re.error as error:
        raise InvalidArgument(f"--leave-out is {left_out!r}, no regular expression: {error}") from None
    with opened(wheel) as archive, whole_folder(parts) as folder:
        writer, files, contents = PartWriter(folder, part_bytes), [], {}
        with lzma.LZMAFile(writer, "w", filters=FILTERS) as stream:
            for name, content in small_files(archive, number, left_out):
                stream.write(content)
                files.append({"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
                if name == PROVIDER:
                    contents["needs"] = fatbins.needed_libraries(content)
                elif match := BINDINGS.match(name):
                    contents["python"] = match[1]
        writer.finish()
        contents |= {"wheel": wheel.name, "architecture": architecture, "left_out": left_out}
        contents |= {"parts": writer.parts, "files": files}
        (folder / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n")
        total = sum(path.stat().st_size for path in folder.iterdir())
        if total > total_bytes:
            raise InvalidArgument(
                f"the parts have {total / 2**20:.1f} MiB, more than the {total_bytes / 2**20:.1f} of --total-bytes; leave out more "
                f"kernels with --leave-out, or raise the limit"
            )
    return contents


def check_free(folder: Path) -> None:
    """Refuse a folder that is there, before the work: what is in it is somebody's."""
    if os.path.lexists(check_place(folder)):
        raise OutputError(f"{folder} exists; name another folder, or remove it first")


def architecture_number(name: str) -> int:
    """90 for sm_90 or sm_90a."""
    match = re.fullmatch(r"sm_(\d{2,3})a?", name)
    if match is None:
        raise InvalidArgument(f"--architecture is {name!r}; pass one such as sm_90")
    return int(match[1])


def opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"cannot read the wheel {wheel}: {error}") from error


def contents_of(parts: Path) -> dict[str, Any]:
    """``parts.json``, with every part there and of the right digest."""
    path = parts / CONTENTS
    try:
        contents: dict[str, Any] = json.loads(path.read_text())
        expected = {part["name"]: (part["bytes"], part["sha256"]) for part in contents["parts"]}
        names = [PurePosixPath(file["path"]) for file in contents["files"]]
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error}; copy the whole folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not what `make` wrote: {error!r}; copy it again") from error
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise BundleError(f"{path} names files outside the folder; it is not what `make` wrote")
    wrong = []
    for name, (size, digest) in expected.items():
        part = parts / name
        if not part.is_file():
            wrong.append(f"{name} is missing")
        elif part.stat().st_size != size:
            wrong.append(f"{name} has {part.stat().st_size} bytes, not {size}")
        elif hashlib.sha256(part.read_bytes()).hexdigest() != digest:
            wrong.append(f"{name} has another digest")
    if wrong:
        raise BundleError(f"parts in {parts} are not what `make` wrote: {', '.join(wrong)}; copy them again")
    return contents


def join(parts: Path, out: Path, python: str | None = None) -> dict[str, Any]:
    """Put the parts together as the folder ``out``, which must not be there; what they hold.

    ``python`` is the suffix of compiled modules that the wheel must be for, as ``sysconfig`` has it; None takes any.
    """
    check_free(out)
    contents = contents_of(parts)
    if python not in (None, contents["python"]):
        raise BundleError(
            f"the parts are for {contents['python']}, this Python is {python}; make them of that Python's wheel"
        )
    paths = [parts / part["name"] for part in contents["parts"]]
    with whole_folder(out) as folder, lzma.LZMAFile(io.BufferedReader(PartReader(paths), BLOCK)) as stream:
        for file in contents["files"]:
            path, left, digest = folder / file["path"], file["bytes"], hashlib.sha256()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                while block := stream.read(min(BLOCK, left)):
                    target.write(block)
                    digest.update(block)
                    left -= len(block)
            if digest.hexdigest() != file["sha256"]:
                raise BundleError(f"{file['path']} came out of {parts} with another digest; make the parts again")
    return contents


def check(wheel: Path, parts: Path) -> dict[str, Any]:
    """Compare what the parts hold with the wheel; what was found."""
    with tempfile.TemporaryDirectory() as name, opened(wheel) as archive:
        whole, small = Path(name) / "whole", Path(name) / "small"
        contents = join(parts, small)
        archive.extractall(whole)
        expected = {one for one in archive.namelist() if not NOT_NEEDED.match(one)}
        found = {path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file()}
        if found != expected:
            raise BundleError(f"the parts in {parts} lack or add files: {', '.join(sorted(found ^ expected))}")
        for one in sorted(expected - {PROVIDER}):
            if (whole / one).read_bytes() != (small / one).read_bytes():
                raise BundleError(f"{one} is not the wheel's")
        before, after = ((folder / PROVIDER).read_bytes() for folder in (whole, small))
        counts = fatbins.compare(before, after, architecture_number(contents["architecture"]), contents["left_out"])
        sizes = {
            "wheel bytes": wheel.stat().st_size,
            "parts bytes": sum(path.stat().st_size for path in parts.iterdir()),
        }
        placed = (
            check_placement(whole, small) if contents["python"] == python_suffix() else "not compared: another Python"
        )
    return {**sizes, **counts, "placement": placed}


def check_placement(whole: Path, small: Path) -> str:
    """Where both place the nodes of the shipped graphs; raises if not in the same places."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from standins.cuda_placement import environment_of, place, placed_graphs

    with tempfile.TemporaryDirectory() as before, tempfile.TemporaryDirectory() as after:
        environments = environment_of(whole, Path(before)), environment_of(small, Path(after))
        graphs = placed_graphs()
        for graph in graphs:
            expected, found = (place(environment, graph, {}) for environment in environments)
            if found != expected:
                raise BundleError(f"{graph.name}: from the parts, nodes are placed as {found}, not {expected}")
    return f"as from the wheel, in {len(graphs)} graphs; version, nodes of the last by provider and copies: {summary(*found)}"


def summary(version: str, placed: dict[str, str], copies: int) -> tuple[str, dict[str, int], int]:
    return version, dict(Counter(placed.values())), copies


def python_suffix() -> str:
    return str(sysconfig.get_config_var("SOABI"))


def print_needs(contents: dict[str, Any], folder: Path) -> None:
    """What a process needs to use what was joined."""
    needs = ", ".join(name for name in contents["needs"] if name.startswith(("libcu", "libnv")))
    print(f"export PYTHONPATH={folder.resolve()}:$PYTHONPATH")
    print(f"# It loads {needs} and, by name when first used, libcudnn.so.9.")
    print(
        "# Their folders, if not in the loader's cache, must be in LD_LIBRARY_PATH before Python starts: docs/on-a-gpu.md."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker, joiner, checker = (commands.add_parser(name) for name in ("make", "join", "check"))
    for command in (maker, checker):
        command.add_argument("wheel", type=Path)
    for command in (maker, joiner, checker):
        command.add_argument("parts", type=Path)
    maker.add_argument("--architecture", default="sm_90")
    maker.add_argument(
        "--leave-out", default=MIXTURES_OF_EXPERTS, help="pattern of kernels' mangled names; '' for none"
    )
    maker.add_argument("--part-bytes", type=int, default=20_000_000)
    maker.add_argument("--total-bytes", type=int, default=60 << 20)
    joiner.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "make":
            made = make(
                given.wheel, given.parts, given.architecture, given.leave_out, given.part_bytes, given.total_bytes
            )
            total = sum(part["bytes"] for part in made["parts"])
            print(f"{len(made['parts'])} parts, {total / 2**20:.1f} MiB, of {given.wheel.stat().st_size / 2**20:.1f}")
        elif given.command == "join":
            print_needs(join(given.parts, given.folder, python_suffix()), given.folder)
        else:
            print(json.dumps(check(given.wheel, given.parts), indent=1))
    except CoupledSamplingError as error:
        raise SystemExit(f"{given.command}: {error}") from None


if __name__ == "__main__":
    main()
