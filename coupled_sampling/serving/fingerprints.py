"""`fingerprint`: what tells a model from every other one, and from another version of itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from coupled_sampling.bundles.opening import Bundle

__all__ = ["fingerprint"]

_PROSE = ("description", "licence", "provenance")
"""Fields of a manifest that no token depends on."""


def fingerprint(bundle: Bundle) -> str:
    """SHA-256 of all that a model's tokens depend on: the digests of its files, and what its manifest says but prose.

    Of somebody else's ONNX file, whose manifest lists no files, it is over the contents of that one, too. Fields that hold nothing
    are left out, so that a version of this library that knows more of them gives the same.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving.fingerprints import fingerprint
    >>> len(fingerprint(open_bundle("fashion")))
    64
    """
    said = {name: value for name, value in asdict(bundle.manifest).items() if name not in _PROSE}
    whole = hashlib.sha256(json.dumps(_without_none(said), sort_keys=True).encode())
    if not bundle.manifest.files:
        with bundle.window_graph.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _without_none(part) for name, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list | tuple) else value
