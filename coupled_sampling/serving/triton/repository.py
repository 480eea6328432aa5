"""Writing a model into a model repository of Triton, whole or not at all: `write_model`.

::

    REPOSITORY/
      NAME/
        config.pbtxt     how it is served
        1/
          model.py       imports `coupled_sampling.serving.triton.backend`
          bundle/        a copy of the bundle, so that the repository can be moved to another machine

Other models of the repository are left alone. A folder of this name is replaced only where that is asked for, and only if all of it
was written here: a file that was not, or that was edited, stops it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from coupled_sampling.bundles.files import Contents, check_place, read_contents, real_path, whole_folder
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.manifest_file import read_manifest
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError
from coupled_sampling.serving.triton.configuration import CONFIG, as_written, configuration, sealed
from coupled_sampling.serving.triton.settings import BUNDLE, TritonSettings
from coupled_sampling.serving.ways import check_servable

__all__ = ["MODEL", "write_model"]

_VERSION = "1"
"""Of the model: Triton serves the highest, and this one is replaced as a whole."""

_PROGRAM = "model.py"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

MODEL = sealed('''\
"""Written by `coupled-sampling triton`: the class that Triton's Python backend runs."""

try:
    from coupled_sampling.serving.triton.backend import TritonPythonModel
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: the Python of Triton's Python backend needs this model's library: pip install 'coupled-sampling[cpu,text]', "
        "or [gpu,text] for a GPU"
    ) from error

__all__ = ["TritonPythonModel"]
''')
"""The text of ``model.py``."""


def write_model(
    bundle: Bundle,
    repository: Path,
    settings: TritonSettings | None = None,
    *,
    name: str | None = None,
    link: bool = False,
    replace: bool = False,
) -> Path:
    """Put a bundle into a model repository; gives the model's folder.

    Parameters
    ----------
    bundle
        The model.
    repository
        Folder of the repository; made if there is none.
    settings
        How it is served.
    name
        What clients call it; None is the bundle's name.
    link
        Refer to the bundle where it is, rather than copy it.
    replace
        Replace the model if it is there, and was written here.

    Raises
    ------
    InvalidArgument
        The name is none for a model, or the bundle cannot be decoded so.
    OutputError
        The folder cannot be written, or must not be replaced.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving.triton.repository import write_model
    >>> folder = write_model(open_bundle("fashion"), Path("models"))
    >>> sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    ['1/bundle', '1/model.py']
    """
    settings = settings or TritonSettings()
    check_servable(bundle.manifest)
    bundle.settings(**settings.defaults)
    name = bundle.manifest.name if name is None else name
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"name is {name!r}, expected a name of letters, digits, '.', '_' and '-', which begins with one of the first two"
        )
    source = bundle.folder.resolve()
    inside, out = real_path(repository) / name, repository / name
    if source.is_relative_to(inside):
        raise OutputError(f"cannot write {out}: the bundle is in it; choose another name")
    found = _check(out, inside, replace=replace)
    text = configuration(name, bundle.manifest, settings, str(source) if link else BUNDLE)
    with _whole(repository, name, found) as folder:
        version = folder / _VERSION
        version.mkdir(parents=True)
        (version / _PROGRAM).write_text(MODEL, encoding="utf-8")
        if not link:
            _copy(bundle, version / BUNDLE)
        (folder / CONFIG).write_text(text, encoding="utf-8")
    return out


@contextlib.contextmanager
def _whole(repository: Path, name: str, found: Contents | None) -> Iterator[Path]:
    """A hidden folder that becomes the model's when the block ends well; where there is no repository, it is a part of that."""
    if os.path.lexists(real_path(repository)):
        with whole_folder(repository / name, found) as folder:
            yield folder
    else:
        with whole_folder(repository) as folder:
            (folder / name).mkdir()
            yield folder / name


def _check(out: Path, inside: Path, *, replace: bool) -> Contents | None:
    """What is at a model's folder and may be replaced; None if nothing is there."""
    if not os.path.lexists(inside.parent):
        check_place(out.parent)
        return None
    if not inside.parent.is_dir():
        raise OutputError(f"cannot write {out}: {out.parent} is no folder; name one for the repository")
    real = check_place(out)
    if not os.path.lexists(real):
        return None
    if not replace:
        raise OutputError(f"cannot write {out}: it exists; choose another --name, or --replace the model")
    if not real.is_dir():
        raise OutputError(f"cannot replace {out}: it is no folder; choose another --name")
    return _ours(out, real)


def _ours(out: Path, real: Path) -> Contents:
    """What is in a model's folder, if all of it was written here."""
    refusal = f"cannot replace {out}"
    version = real / _VERSION
    try:
        config, program = (path.read_text(encoding="utf-8") for path in (real / CONFIG, version / _PROGRAM))
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{refusal}: `coupled-sampling triton` did not write it; choose another --name") from error
    for path, text in ((CONFIG, config), (f"{_VERSION}/{_PROGRAM}", program)):
        if not as_written(text):
            raise OutputError(f"{refusal}: {path} in it was edited since it was written; move it away first")
    known = {CONFIG, _VERSION, f"{_VERSION}/{_PROGRAM}"}
    kept = version / BUNDLE
    try:
        if kept.is_dir() and not kept.is_symlink():
            files = (MANIFEST, *read_manifest(kept).files)
            known |= {f"{_VERSION}/{BUNDLE}", *(f"{_VERSION}/{BUNDLE}/{file}" for file in files)}
        contents = read_contents(real)
    except (BundleError, OSError) as error:
        raise OutputError(f"{refusal}: what is in it is no bundle any more ({error}); move it away first") from error
    # Python leaves compiled modules beside a program that it has imported.
    cached = {path for path in contents.names if Path(path).parts[:2] == (_VERSION, "__pycache__")}
    strange = sorted(Path(path).as_posix() for path in contents.names - cached if Path(path).as_posix() not in known)
    if strange:
        raise OutputError(
            f"{refusal}: {strange[0]} in it is not of this command; move it away first, or choose another --name"
        )
    return contents


def _copy(bundle: Bundle, folder: Path) -> None:
    """The bundle's files, those that its manifest lists; what links lead to is copied."""
    folder.mkdir()
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.folder / name, folder / name)
