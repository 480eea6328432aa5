"""Reading a configuration so that nothing in it is ignored by accident.

A key that changes the numbers and is not understood gives a model that runs and is wrong. So every key must be taken, be
known to have no effect on the logits, or be refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from coupled_sampling.export.checkpoints.contract import CheckpointError

__all__ = ["HARMLESS", "ConfigReader"]

_KEYS = (
    "_name_or_path _attn_implementation architectures model_type torch_dtype dtype transformers_version use_cache "
    "initializer_range initializer_factor initializer_cutoff_factor attention_dropout attn_pdrop embd_pdrop resid_pdrop "
    "hidden_dropout dropout layer_dropout bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id "
    "output_attentions output_hidden_states output_scores return_dict return_dict_in_generate pretraining_tp "
    "gradient_checkpointing task_specific_params problem_type id2label label2id finetuning_task is_decoder "
    "is_encoder_decoder tokenizer_class prefix chunk_size_feed_forward add_cross_attention cross_attention_hidden_size "
    "summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels "
    "torchscript tf_legacy_loss use_bfloat16 pruned_heads auto_map name_or_path"
)
HARMLESS = frozenset(_KEYS.split())
"""Keys of Hugging Face configurations that do not change the logits of a decoder at inference."""


class ConfigReader:
    """Takes keys out of ``config`` one by one; `finish` refuses what is left.

    Parameters
    ----------
    config
        The configuration, or a part of it.
    where
        What it is, for messages.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._left = dict(config)
        self._where = where

    def take(self, key: str, default: Any = ..., accepted: Collection[Any] | None = None) -> Any:
        """The value of ``key``.

        Parameters
        ----------
        default
            What a missing key means; without one it is refused. A value of None means the default, too, if that is not None.
        accepted
            The values that are supported; None for all.

        Raises
        ------
        CheckpointError
            The key is missing, or has another value.
        """
        if key not in self._left and default is ...:
            raise CheckpointError(f"{self._where} has no {key!r}; expected it in a configuration of this family")
        value = self._left.pop(key, default)
        if value is None and default is not ...:
            value = default
        if accepted is not None and not any(value == one and type(value) is type(one) for one in accepted):
            wanted = ", ".join(repr(one) for one in accepted)
            raise CheckpointError(f"{self._where}: {key} is {value!r}, and only {wanted} can be exported")
        return value

    def part(self, key: str, where: str | None = None) -> ConfigReader:
        """A reader of the nested configuration ``key``."""
        value = self.take(key)
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self._where}: {key} is {value!r}, expected a configuration of its own")
        return ConfigReader(value, where or f"{self._where}, {key}")

    def ignore(self, *keys: str) -> None:
        """Drop keys that are known to have no effect on the logits of this family."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Refuse whatever has not been taken, unless it is `HARMLESS`.

        Raises
        ------
        CheckpointError
            A key is left.
        """
        left = {key: value for key, value in self._left.items() if key not in HARMLESS}
        if left:
            listed = ", ".join(f"{key} = {value!r}" for key, value in sorted(left.items()))
            raise CheckpointError(
                f"{self._where} has keys that are not understood: {listed}. They may change the numbers, so the export stops here; "
                "if they have no effect, remove them from the configuration"
            )
