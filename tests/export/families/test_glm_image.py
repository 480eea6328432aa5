"""GLM-Image's configuration, read; what it means is compared with transformers in ``test_glm_image_torch.py``."""

import numpy as np
import pytest

from coupled_sampling.bundles.layouts import Span
from coupled_sampling.errors import CheckpointError
from coupled_sampling.export import PicturePositions, Rotary
from coupled_sampling.export.families import find_family
from standins.checkpoints import checkpoint_of
from standins.published import published, recommended
from standins.tree_windows import furthest_of_trees

WIDTH, SIZE, HIDDEN, WORDS, HEAD = 16, 8, 20, 16600, 16512
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 0, 1]},
    "eos_token_id": 16385,
}
CONFIG = {"model_type": "glm_image", "text_config": TEXT, "vision_config": {"depth": 1}, "image_token_id": 16500}
LAYER = {
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
    "self_attn.q_proj.bias": (WIDTH,),
    "self_attn.k_proj.weight": (SIZE, WIDTH),
    "self_attn.k_proj.bias": (SIZE,),
    "self_attn.v_proj.weight": (SIZE, WIDTH),
    "self_attn.v_proj.bias": (SIZE,),
    "self_attn.o_proj.weight": (WIDTH, WIDTH),
    "mlp.gate_up_proj.weight": (2 * HIDDEN, WIDTH),
    "mlp.down_proj.weight": (WIDTH, HIDDEN),
} | {f"{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_self_attn", "post_attention", "post_mlp")}
SHAPES = {f"model.language_model.layers.0.{name}": shape for name, shape in LAYER.items()} | {
    "model.language_model.embed_tokens.weight": (WORDS, WIDTH),
    "model.language_model.norm.weight": (WIDTH,),
    "lm_head.weight": (HEAD, WIDTH),
}
TENSORS = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def load(config=CONFIG, tensors=TENSORS, positions=None):
    checkpoint = checkpoint_of(tensors, config)
    return find_family(checkpoint).load(checkpoint, positions)


def test_the_decoder():
    found = load().description
    pictures = PicturePositions(16384, ((16, 16), (32, 32)), (1, 0, 1))
    assert found.rotary == Rotary(base=500.0, size=4, pictures=pictures)
    assert (found.generated_first, found.generated, found.vocab_size, found.tied_head) == (0, HEAD, WORDS, False)
    assert (found.norm_placement, found.query_key_value_bias, found.attention_output_bias) == ("both", True, False)
    assert (found.layers, found.manifest("window.onnx").layers) == (1, 2)


def test_windows_may_be_trees():
    """Pictures begin in one branch and not in another."""
    pytest.importorskip("onnx")
    found = load(positions=64).description
    assert furthest_of_trees(found, passes=3, begin=found.pictures.begin) <= 1e-4


def test_tensors_of_pictures_are_left_out_and_others_refused():
    load(tensors=TENSORS | {"model.visual.a": np.zeros(1), "model.vqmodel.b": np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"model\.audio\.c"):
        load(tensors=TENSORS | {"model.audio.c": np.zeros(1)})
    for name in TENSORS:
        with pytest.raises(CheckpointError, match=f"{name}'"):
            load(tensors={key: array for key, array in TENSORS.items() if key != name})


def test_decoding_is_both_pictures_and_their_end():
    decoding = load().decoding
    assert decoding.layout.spans == (Span(0, 16384, 256), Span(0, 16384, 1024), Span(16385, 1))
    assert (decoding.length, decoding.drafting, recommended(decoding)) == (1281, "copy:32", published("GLM-Image"))
    assert (decoding.stop_tokens, decoding.grid) == ((16385,), None)
    assert "<sop>32 32<eop><sop>16 16<eop> and token 16384" in decoding.notes[0]
    short = load(positions=1281).decoding
    assert (short.length, short.layout, short.drafting) == (0, None, "random:0:16384")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": 3}, "text_config is 3, expected an object"),
        ({"text_config": TEXT | {"rope_parameters": {"mrope_section": [1, 1]}}}, "three numbers of pairs"),
        ({"text_config": TEXT | {"rope_parameters": {"mrope_section": [1, 1, 1]}}}, "sum to the 4 pairs"),
        ({"text_config": TEXT | {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "differ"),
        ({"image_end_token_id": HEAD}, "begin with token 16384 and end with 16512"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"video_token_id": 4}, "keys that are not understood: video_token_id"),
    ],
)
def test_what_would_be_another_model_is_refused_by_name(changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(CONFIG | changes)
