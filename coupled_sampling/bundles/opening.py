"""Bundles: a model as a folder that any backend, in any language, can run.

A folder holds ``manifest.json``, a *window graph* (tokens to logits, see ``docs/bundle-format.md``) and perhaps a
*pixel graph* (tokens to a picture) and *step graphs* (whole steps, see ``docs/step-graph.md``). The manifest says what
the graphs promise, what the tokens mean, and the byte count and SHA-256 of every file. `open_bundle` believes none of
it: a folder that is missing, truncated, damaged, too new or not a bundle is refused with a `BundleError` that names the
file or field, so that no graph is ever run that was not the one exported, and none with weights from a file that is not
listed. Nothing here loads a graph; that is what backends are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.bundles.correction_tables import CorrectionTables, neighbour_lags, read_corrections
from coupled_sampling.bundles.graph_files import check_graph_files
from coupled_sampling.bundles.manifest import MANIFEST, FileRecord, Manifest
from coupled_sampling.bundles.manifest_file import file_record, read_manifest
from coupled_sampling.bundles.settings import DecodingSettings, Given, check_corrections, decoding_settings
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.corrections import Corrector
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_is, check_path
from coupled_sampling.methods import Method, find_method
from coupled_sampling.plain_corrections import KeptAverages, RunningAverages

__all__ = ["Bundle", "embedded_names", "open_bundle"]

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, whose files have been checked, and its manifest.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> bundle = open_bundle("fashion")
    >>> bundle.window_graph.name, bundle.pixel_graph.name
    ('window.onnx', 'pixels.onnx')
    >>> bundle.step_graph("scd-match", warped=True).name
    'step-scd-match-warped.onnx'
    >>> bundle.step_graph("speculative") is None
    True
    >>> bundle.settings(temperature=0.5).window
    16
    >>> bundle.tokenizer() is None, bundle.chat_template() is None
    (True, True)
    >>> bundle.corrector("scd-match", "none") is None
    True
    """

    folder: Path
    manifest: Manifest

    @property
    def window_graph(self) -> Path:
        """Path of the window graph."""
        return self.folder / self.manifest.window_graph.file

    @property
    def pixel_graph(self) -> Path | None:
        """Path of the pixel graph, None if there is none."""
        graph = self.manifest.pixel_graph
        return None if graph is None else self.folder / graph.file

    @property
    def tree_graph(self) -> Path | None:
        """Path of the window graph for windows that are trees, None if there is none."""
        graph = self.manifest.tree_graph
        return None if graph is None else self.folder / graph.file

    @property
    def causal_graph(self) -> Path | None:
        """Path of the window graph without masks, None if there is none."""
        graph = self.manifest.causal_graph
        return None if graph is None else self.folder / graph.file

    @property
    def condition_graph(self) -> Path | None:
        """Path of the graph that reads conditions, None if the model takes none."""
        graph = self.manifest.condition_graph
        return None if graph is None else self.folder / graph.file

    def step_graph(
        self,
        method: str,
        *,
        warped: bool = False,
        guided: bool = False,
        noise: str = "ring",
        corrected: bool = False,
        tree: bool = False,
    ) -> Path | None:
        """Path of the leanest step graph that can do this, None if there is none.

        Parameters
        ----------
        method
            Name of a decoding method.
        warped
            Whether any row has top-k, top-p or min-p; a warped graph can do without, too.
        guided
            Whether rows are guided.
        noise
            Where its race noise comes from; "window" for TensorRT.
        corrected
            Whether redrafts are drawn from corrected laws.
        tree
            Whether windows may have branches.
        """
        for name, value, kind in (
            ("method", method, str),
            ("warped", warped, bool),
            ("guided", guided, bool),
            ("noise", noise, str),
            ("corrected", corrected, bool),
            ("tree", tree, bool),
        ):
            check_is(name, value, kind)
        wanted = (method, guided, noise, corrected, tree)
        fitting = [
            graph
            for graph in self.manifest.step_graphs
            if (graph.method, graph.guided, graph.noise, graph.corrected, graph.tree) == wanted
        ]
        fitting = sorted((g for g in fitting if g.warped or not warped), key=lambda g: g.warped)
        return self.folder / fitting[0].file if fitting else None

    def settings(self, **given: Unpack[Given]) -> DecodingSettings:
        """How to decode the model: what is given, over what the bundle recommends.

        Parameters
        ----------
        **given
            Any of ``method``, ``window``, ``branches``, ``drafting``, ``prompt_chunk``, ``guidance``, ``guidance_interval``,
            ``length``, ``temperature``, ``top_k``, ``top_p``, ``min_p`` and ``corrections``. None, too, leaves one to
            the bundle.

        Raises
        ------
        InvalidArgument
            A value cannot work, or the model has no place for it: a length of its own, guidance without an unconditional prompt, a
            window that is too wide.
        """
        return decoding_settings(self.manifest, given)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a model that reads text; None if the bundle has none.

        Raises
        ------
        BundleError, MissingDependency
            As from `coupled_sampling.bundles.Tokenizer`.
        """
        name = self.manifest.tokenizer
        return None if name is None else Tokenizer(self.folder / name)

    def chat_template(self) -> ChatTemplate | None:
        """How the model takes a conversation; None if the bundle does not say.

        Raises
        ------
        BundleError
            The file is no chat template.
        """
        name = self.manifest.chat_template
        return None if name is None else ChatTemplate.read(self.folder / name)

    def corrector(self, method: str | Method, kind: str = "auto") -> Corrector | None:
        """What predicts the laws of redrafts of ``method`` whose neighbours changed, see `coupled_sampling.corrections`.

        It goes to `coupled_sampling.generate` or `coupled_sampling.Decoder`, beside a provider: a step that was opened has its own.

        Parameters
        ----------
        method
            A name from `coupled_sampling.methods.METHODS`, or a `Method`.
        kind
            "fitted" is the bundle's table for how the method accepts drafts; "auto" the same if there is one. "plain" needs no fit.
            "none" is none. "network" is run by a back end: see `coupled_sampling.backends.NetworkCorrection.open`.

        Returns
        -------
        Corrector or None
            None also for methods that redraft nothing.

        Raises
        ------
        InvalidArgument
            There is no such method or kind, or no table that was asked for; or it is "network".
        BundleError
            The tables are damaged, or made for another model, vocabulary or layout.
        """
        method = find_method(method)
        check_corrections(kind)
        if kind == "network":
            raise InvalidArgument(
                "corrections is 'network', which a back end runs: give it to open_model, or take it from "
                "coupled_sampling.backends.NetworkCorrection.open"
            )
        record, use = self.manifest.corrections, method.acceptance
        here = record is not None and (use in record.uses or not method.recycles)
        if kind == "fitted" and not here:
            raise InvalidArgument(
                f"corrections is 'fitted', but the bundle {self.manifest.name} has no table for {method.name}; run "
                "`coupled-sampling fit-corrections`, or choose 'plain' or 'none'"
            )
        if kind == "none" or not method.recycles:
            return None
        if kind == "plain":
            return _plain_corrector(self.manifest, self.correction_tables())
        tables = self.correction_tables() if here else None
        return None if tables is None else tables.fitted[use]

    def correction_tables(self) -> CorrectionTables | None:
        """All tables of the bundle; None if it has none.

        Raises
        ------
        BundleError
            They are damaged, or made for another model, vocabulary or layout.
        """
        return None if self.manifest.corrections is None else read_corrections(self.folder, self.manifest)


def _plain_corrector(manifest: Manifest, tables: CorrectionTables | None) -> Corrector:
    """The bundle's own averages, or empty ones that learn while they are decoded with."""
    if tables is None or not tables.plain:
        return RunningAverages(neighbour_lags(manifest), manifest.vocab_size)
    return KeptAverages.from_state(tables.plain)


def embedded_names() -> tuple[str, ...]:
    """Names of the models shipped with the library.

    Examples
    --------
    >>> from coupled_sampling.bundles import embedded_names
    >>> embedded_names()
    ('fashion', 'moving')
    """
    return tuple(sorted(path.parent.name for path in MODELS.glob(f"*/{MANIFEST}") if path.parent.name[0] != "."))


def open_bundle(path_or_name: str | Path) -> Bundle:
    """Open a bundle and check every file of it (12 MB take about 20 ms).

    Parameters
    ----------
    path_or_name
        Name of an embedded model, or path of a folder. A name wins over a folder of the same name in the working
        directory: write ``./fashion`` for that one.

    Raises
    ------
    BundleError
        There is no such model or folder, or it is not an undamaged bundle of this format.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> bundle = open_bundle("fashion")
    >>> bundle.manifest.find_prompt("Shoe"), bundle.manifest.length
    ((263,), 196)
    >>> open_bundle("nowhere")
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: no bundle 'nowhere': expected the folder of a bundle and found nothing there...
    """
    given = check_path("path_or_name", path_or_name)
    embedded = embedded_names()
    is_name = isinstance(path_or_name, str) and path_or_name in embedded
    folder = MODELS / given if is_name else given
    foreign = _foreign(folder)
    if foreign:
        raise BundleError(f"{folder} {foreign}")
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise BundleError(
            f"no bundle {str(path_or_name)!r}: expected the folder of a bundle and found {found} there, nor is it an "
            f"embedded model ({', '.join(embedded) or 'none is installed'}); check the path or the name"
        )
    manifest = read_manifest(folder)
    while True:
        try:
            _check_files(folder, manifest)
            return Bundle(folder, manifest)
        except (BundleError, FileNotFoundError):
            before, manifest = manifest, read_manifest(folder)
            if manifest == before:  # else somebody put other tables into it meanwhile, and removed those that it named
                raise


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse files that are not what the manifest says."""
    for name, record in manifest.files.items():
        _check_file(folder / name, record)
    parts = (
        manifest.window_graph,
        manifest.pixel_graph,
        manifest.tree_graph,
        manifest.condition_graph,
        manifest.causal_graph,
    )
    for graph in (*parts, *manifest.step_graphs):
        if graph is not None:
            check_graph_files(folder, graph.file, manifest.files)
    if manifest.corrections is not None and manifest.corrections.network is not None:
        check_graph_files(folder, manifest.corrections.network, manifest.files)


def _foreign(path: Path) -> str:
    """What to say of ONNX files that are no bundle; empty if there are none."""
    if path.is_file() and path.suffix == ".onnx":
        found = "is an ONNX file"
    elif not any((path / own).exists() for own in (MANIFEST, "window.onnx")) and any(
        True for part in (path, path / "onnx") for _ in part.glob("*.onnx")
    ):
        found = "has ONNX files and no manifest.json"
    else:
        return ""
    return (
        f"{found}, so it is no bundle; a decoder that somebody else exported is opened by coupled_sampling.backends.open_onnx, or "
        "by the commands inspect, generate, compare and verify"
    )


def _check_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing, the manifest lists it; copy or export the bundle again")
    size = path.stat().st_size
    if size != record.bytes:
        raise BundleError(f"{path} has {size} bytes, expected {record.bytes}: truncated or replaced; copy it again")
    digest = file_record(path).sha256
    if digest != record.sha256:
        raise BundleError(f"{path} has SHA-256 {digest}, expected {record.sha256}: damaged or replaced; copy it again")
