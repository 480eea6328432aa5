"""What a configuration says is held against its type and against the tensors that are there."""

import pytest

from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.families import find_family
from standins.checkpoints import checkpoint_of
from standins.text_models import HEADS, HIDDEN, KV_HEADS, LAYERS, POSITIONS, VOCABULARY, WIDTH, llama_tensors

CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
}


def load(positions=None, **changes):
    checkpoint = checkpoint_of(llama_tensors(), CONFIG | changes)
    return find_family(checkpoint).load(checkpoint, positions)


def test_the_configuration_is_right_without_changes():
    assert load().description.layers == LAYERS


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 10**5}, "asks for 100000 layers, and the checkpoint holds only"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected an integer from 1"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000000000000000000000000000000, expected an integer"),
        ({"hidden_size": str(WIDTH)}, "hidden_size is '.*', expected an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected an integer from 1"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number"),
        ({"rope_theta": float("nan")}, "rope_theta is nan|base of the rotary positions is nan"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x', expected a token"),
        ({"eos_token_id": [1, [2]]}, "eos_token_id is .*, expected a token"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ({"rope_scaling": ["linear"]}, "rotary scaling is"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(changes, match):
    with pytest.raises(CheckpointError, match=match):
        load(**changes)


def test_more_positions_than_a_cache_can_have_are_refused_unless_fewer_are_asked_for():
    with pytest.raises(InvalidArgument, match=r"a sequence would have 2147483647 positions.*--max-length"):
        load(max_position_embeddings=2**31 - 1)
    assert load(64, max_position_embeddings=2**31 - 1).description.positions == 64


def test_what_is_not_set_or_is_about_something_else_passes():
    settings = {
        "quantization_config": None,
        "unsloth_version": "2025.1",
        "suppress_tokens": None,
        "attn_implementation": "sdpa",
    }
    assert load(**settings, anything_new=None, top_k=50).description.layers == LAYERS
    # As transformers itself wrote it at one time or another, and as those who train and load models do.
    others = {
        "_num_labels": 2,
        "use_return_dict": True,
        "output_past": True,
        "tie_encoder_decoder": False,
        "xla_device": 0,
    }
    others |= {"neftune_noise_alpha": 5.0, "use_flash_attention_2": True, "trust_remote_code": True, "bos_token": "<s>"}
    assert load(**others).description == load().description
    with pytest.raises(CheckpointError, match="anything_new = 1"):
        load(anything_new=1)
