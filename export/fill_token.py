"""The token that a model is likeliest to begin with: what drafting rules guess where there is nothing to copy yet.

A drafting rule that copies from the row above has no row above at first. Repeating the prompt's last token would be a guess that is
never right where prompts are of other tokens than pictures. So the first positions are guessed to be the token that is likeliest to
come first, over the model's own prompts: in a picture that is most often its background, which goes on for a while. How good the
guess is changes how many passes are needed, and no law.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import to_host
from coupled_sampling.bounds import check_logits
from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.contracts import Integers, LogitsProvider, RowInfo, Sampling, max_window
from coupled_sampling.fields import check_is
from coupled_sampling.target import target_laws

__all__ = ["find_fill_token"]

_PROMPTS = 32
"""Prompts to look at, at most."""


def find_fill_token(provider: LogitsProvider, manifest: Manifest) -> int | None:
    """The likeliest first token, by the mean of the first laws after the prompts that ``manifest`` names.

    Parameters
    ----------
    provider
        The model; its first row is used.
    manifest
        Names the prompts, of which 32 are looked at, spread over all of them, and the layout. The laws are the model's own: without
        guidance, at temperature 1, and nothing cut off.

    Returns
    -------
    int or None
        For ``Manifest.fill_token``; None where no prompt has a name, as those of a text have none, or where none says what comes
        without a condition.

    Raises
    ------
    ProviderError
        The model gives no logits of its vocabulary, or none from which a law can be made.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends import OrtProvider
    >>> from coupled_sampling.export import find_fill_token
    >>> manifest = open_bundle("fashion").manifest
    >>> find_fill_token(OrtProvider.open("fashion"), manifest) == manifest.fill_token
    True
    """
    check_is("manifest", manifest, Manifest)
    prompts = [np.array(prompt.tokens, np.int64) for prompt in manifest.prompts.values()]
    if not prompts or manifest.condition_graph is not None:
        return None
    chosen = np.unique(np.linspace(0, len(prompts) - 1, min(len(prompts), _PROMPTS)).round().astype(int))
    laws = [_first_law(provider, manifest, prompts[i]) for i in chosen]
    return int(np.mean(laws, axis=0).argmax())


def _first_law(provider: LogitsProvider, manifest: Manifest, prompt: Integers) -> NDArray[np.float64]:
    """float64 (V,): the law of the token after ``prompt``."""
    widest = max_window(provider)
    for begin in range(0, len(prompt), widest):
        chunk = prompt[None, begin : begin + widest]
        logits = provider.forward(chunk, np.array([begin]))
        check_logits("forward", logits, (*chunk.shape, manifest.vocab_size))
    sampling = Sampling(processors=(Layout(manifest.layout).processor(len(prompt)),) if manifest.layout else ())
    one = np.ones((1, 1), bool)
    made = target_laws(logits[:, -1:, ...], [RowInfo(0, 0, sampling)], [prompt], len(prompt) * one.astype(int), one)
    for error in made.failures(np.zeros(1, np.int64)).values():
        raise error
    return np.asarray(to_host(made.laws)[0, 0], np.float64)
