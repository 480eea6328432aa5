"""Reading a configuration so that nothing in it is ignored by accident, and nothing is believed to be what it is not.

A key that changes the numbers and is not understood gives a model that runs and is wrong. So every key must be taken, be
known to have no effect on the logits, or be refused by name. Whoever takes a key says its type: a text where a size should be
is refused here, once, and nobody behind has to ask again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from coupled_sampling.arguments import is_whole, shown
from coupled_sampling.export.checkpoints.contract import CheckpointError

__all__ = ["HARMLESS", "LARGEST_COUNT", "ConfigReader", "architectures"]

LARGEST_COUNT = 2**31 - 1
"""No size in a configuration is larger."""

_LONGEST_LIST = 1024
"""No list of sizes in a configuration is longer, and some are powers of two or loops to who reads them."""

_KEYS = (
    "_name_or_path _attn_implementation architectures model_type torch_dtype dtype transformers_version use_cache "
    "initializer_range initializer_factor initializer_cutoff_factor attention_dropout attn_pdrop embd_pdrop resid_pdrop "
    "hidden_dropout dropout layer_dropout bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id "
    "output_attentions output_hidden_states output_scores return_dict return_dict_in_generate pretraining_tp "
    "gradient_checkpointing task_specific_params problem_type id2label label2id finetuning_task is_decoder "
    "is_encoder_decoder tokenizer_class prefix chunk_size_feed_forward add_cross_attention cross_attention_hidden_size "
    "summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels "
    "torchscript tf_legacy_loss use_bfloat16 pruned_heads auto_map name_or_path "
    # How others run, load or have trained the model.
    "attn_implementation _attn_implementation_autoset _attn_implementation_internal _flash_attn_2_enabled use_flash_attn "
    "_commit_hash _from_model_config transformers_weights unsloth_version unsloth_fixed transformers.js_config "
    "base_model_name_or_path freeze_base max_sequence_length model_max_length tokenizer_name trust_remote_code xla_device "
    "use_flash_attention use_flash_attention_2 neftune_noise_alpha hidden_dropout_prob attention_probs_dropout_prob "
    "keys_to_ignore_at_inference output_past use_return_dict num_labels _num_labels tie_encoder_decoder "
    "bos_token eos_token pad_token unk_token "
    # Defaults of generation, which older files have here; the bundle's own settings say how to decode.
    "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty forced_decoder_ids"
)
HARMLESS = frozenset(_KEYS.split())
"""Keys of Hugging Face configurations that do not change the logits of a decoder at inference."""


def architectures(config: Mapping[str, Any]) -> list[Any]:
    """What ``architectures`` of a configuration names, whatever it is; empty for none, and for what is no list."""
    named = config.get("architectures")
    return named if isinstance(named, list) else []


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
        if not isinstance(config, Mapping):
            raise CheckpointError(f"{where} is {shown(config)}, expected an object of keys and values")
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
            raise CheckpointError(f"{self._where}: {key} is {shown(value)}, and only {wanted} can be exported")
        return value

    def count(self, key: str, default: Any = ..., *, least: int = 1, most: int = LARGEST_COUNT) -> int:
        """An integer from ``least`` to ``most``; raises as `take` does, and for any other value."""
        value = self.take(key, default)
        if not is_whole(value) or not least <= value <= most:
            raise self.refusal(key, value, f"an integer from {least} to {most}")
        return int(value)

    def number(self, key: str, default: Any = ..., *, positive: bool = False) -> float:
        """A finite number; raises as `take` does, and for any other value."""
        value = self.take(key, default)
        right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if not right or (positive and value <= 0):
            raise self.refusal(key, value, "a number > 0" if positive else "a number")
        return float(value)

    def flag(self, key: str, default: Any = ...) -> bool:
        """True or false; raises as `take` does, and for any other value."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, value, "true or false")
        return value

    def counts(self, key: str, default: Any = ..., *, least: int = 0) -> list[int]:
        """A list of integers of at least ``least``; raises as `take` does, and for any other value."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or len(value) > _LONGEST_LIST:
            raise self.refusal(key, value, f"a list of at most {_LONGEST_LIST} integers")
        if not all(is_whole(item) and least <= item <= LARGEST_COUNT for item in value):
            raise self.refusal(key, value, f"a list of integers from {least} to {LARGEST_COUNT}")
        return [int(item) for item in value]

    def numbers(self, key: str, default: Any = ...) -> list[float]:
        """A list of finite numbers; raises as `take` does, and for any other value."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(
            isinstance(item, int | float) and not isinstance(item, bool) and abs(item) < math.inf for item in value
        ):
            raise self.refusal(key, value, "a list of numbers")
        return [float(item) for item in value]

    def tokens(self, key: str, default: Any = ...) -> dict[str, int]:
        """An object of texts and the tokens they stand for; raises as `take` does, and for any other value."""
        value = self.take(key, default)
        if not isinstance(value, Mapping) or not all(
            isinstance(name, str) and is_whole(token) and 0 <= token <= LARGEST_COUNT for name, token in value.items()
        ):
            raise self.refusal(key, value, "an object of names and the numbers of their tokens")
        return {name: int(token) for name, token in value.items()}

    def part(self, key: str, where: str | None = None, default: Any = ...) -> ConfigReader:
        """A reader of the nested configuration ``key``."""
        return ConfigReader(self.take(key, default), where or f"{self._where}, {key}")

    def refusal(self, key: str, value: Any, expected: str) -> CheckpointError:
        """The error for a ``value`` of ``key`` that cannot be."""
        return CheckpointError(f"{self._where}: {key} is {shown(value)}, expected {expected}")

    def ignore(self, *keys: str) -> None:
        """Drop keys that are known to have no effect on the logits of this family."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Refuse whatever has not been taken, unless it is `HARMLESS`, or null: a setting that is not set changes nothing.

        Raises
        ------
        CheckpointError
            A key is left.
        """
        left = {key: value for key, value in self._left.items() if key not in HARMLESS and value is not None}
        if left:
            listed = ", ".join(f"{key} = {shown(value)}" for key, value in sorted(left.items()))
            raise CheckpointError(
                f"{self._where} has keys that are not understood: {listed}. They may change the numbers, so the export stops here; "
                "if they have no effect, remove them from the configuration"
            )
