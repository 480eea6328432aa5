"""Two orders of the rows of a query or key projection under rotary positions, and the way from one to the other.

A rotary embedding turns pairs of coordinates of a head of d coordinates. Which pairs is a convention:

- *halves*: coordinate i with i + d/2 ("rotate half", GPT-NeoX). Hugging Face's Llama, Qwen2, Qwen3.
- *interleaved*: coordinate 2i with 2i + 1 (Su et al., "RoFormer", arXiv:2104.09864, section 3.2.2; Meta's own Llama files).

The two differ by a permutation of each head's rows, and attention does not notice one made on queries and keys alike.
llama.cpp's converter brings files of the architecture ``llama`` (Mistral and SmolLM2 are stored as that too) from halves
to interleaved, weights and biases of q and k, and its runtime then turns neighbours. It leaves ``qwen2`` and ``qwen3``
in halves, and ``gpt2`` has learned positions and nothing to permute (``LlamaModel.permute`` and ``undo_permute`` in its
conversion scripts). Reading the one as the other is no error anyone reports: the model just talks nonsense.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["unpermute_rotary"]


def unpermute_rotary(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """From interleaved to halves: rows as Hugging Face's files have them.

    Parameters
    ----------
    weight
        (heads * d, ...): a weight of q or k, or its bias. For k, ``heads`` is the number of key and value heads.
    heads
        Number of heads that the rows divide into.

    Returns
    -------
    array
        The same shape and type: within a head row i is row 2i of ``weight``, row i + d/2 is row 2i + 1.

    Raises
    ------
    InvalidArgument
        The rows do not divide into heads of an even size.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.checkpoints.rotary_layout import unpermute_rotary
    >>> unpermute_rotary(np.arange(4), heads=1)  # neighbours 0, 1 and 2, 3 become the pairs 0, 2 and 1, 3 of rows
    array([0, 2, 1, 3])
    """
    rows = weight.shape[0] if weight.ndim else 0
    if heads < 1 or rows < 1 or rows % (2 * heads):
        raise InvalidArgument(
            f"weight has shape {weight.shape}, expected rows that divide into {heads} heads of an even size; "
            "for keys give the number of key and value heads"
        )
    pairs = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
