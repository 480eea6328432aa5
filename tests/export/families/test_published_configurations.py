"""Configurations as they stand on the hub, with the names and shapes of their tensors, are read without a change.

Of each family a model or two, with all that its ``config.json`` says but for the factors of long rotary scaling. There are no
weights: every tensor is a zero that is repeated.
"""

import math

import numpy as np
import pytest

from coupled_sampling.export import LayerKind, Rotary, RotaryScaling
from coupled_sampling.export.families import find_family
from standins.checkpoints import checkpoint_of

COMMON = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
COMMON |= {"transformers_version": "4.50.0", "attention_bias": False, "rope_scaling": None}


def model(sizes, **others):
    """Of ``vocab_size hidden_size intermediate_size layers heads key_heads positions epsilon``."""
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    keys = (*names.split(), "max_position_embeddings", "rms_norm_eps")
    return COMMON | dict(zip(keys, sizes, strict=True)) | others


GEMMA2 = model(
    (256000, 2304, 9216, 26, 8, 4, 8192, 1e-6),
    **{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "cache_implementation": "hybrid"},
    **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256},
    **{"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256},
    **{"rope_theta": 10000.0, "sliding_window": 4096, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
)
GEMMA3 = model(
    (262144, 1152, 6912, 26, 4, 1, 32768, 1e-6),
    **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "cache_implementation": "hybrid"},
    **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 256},
    **{"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "rope_theta": 1000000, "rope_local_base_freq": 10000},
    **{"sliding_window": 512, "sliding_window_pattern": 6, "bos_token_id": 2, "eos_token_id": [1, 106]},
)
TEXT = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
TEXT |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
PICTURES = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": TEXT}
PICTURES |= {
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
}
PICTURES |= {"initializer_range": 0.02, "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1152}}
FACTORS = [1.0 + i / 8 for i in range(48)]
PHI3 = model(
    (32064, 3072, 8192, 32, 32, 32, 131072, 1e-5),
    **{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3"}},
    **{"rope_scaling": {"long_factor": [8.0] * 48, "short_factor": FACTORS, "type": "longrope"}, "rope_theta": 10000.0},
    **{"original_max_position_embeddings": 4096, "sliding_window": 262144, "tie_word_embeddings": False},
    **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 32000},
)
PHI4_MINI = PHI3 | {"vocab_size": 200064, "num_attention_heads": 24, "num_key_value_heads": 8, "lm_head_bias": False}
PHI4_MINI |= {"full_attn_mod": 1, "interpolate_factor": 1, "mlp_bias": False, "partial_rotary_factor": 0.75}
PHI4_MINI |= {"tie_word_embeddings": True, "bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999}
OLMO2 = model(
    (100352, 4096, 11008, 32, 32, 32, 4096, 1e-6),
    **{"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_act": "silu", "rope_theta": 500000},
    **{"tie_word_embeddings": False, "eos_token_id": 100257, "pad_token_id": 100277},
)
SMOLLM3 = model(
    (128256, 2048, 11008, 36, 16, 4, 65536, 1e-6),
    **{"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_act": "silu", "rope_theta": 5000000.0},
    **{"layer_types": ["full_attention"] * 36, "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4},
    **{"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "pretraining_tp": 2},
    **{"mlp_bias": False, "bos_token_id": None, "eos_token_id": 128012, "pad_token_id": 128004},
)
GRANITE = model(
    (49159, 2048, 8192, 40, 32, 8, 131072, 1e-5),
    **{"architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_act": "silu", "mlp_bias": False},
    **{"attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    **{"logits_scaling": 8.0, "rope_theta": 10000000.0, "tie_word_embeddings": True, "eos_token_id": 0},
)
MISTRAL = model(
    (32000, 4096, 14336, 32, 32, 8, 32768, 1e-5),
    **{"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "rope_theta": 10000.0},
    **{"sliding_window": 4096, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2},
)
QWEN = model(
    (152064, 3584, 18944, 28, 28, 4, 32768, 1e-6),
    **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rope_theta": 1000000.0},
    **{"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    **{"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "eos_token_id": 151645},
)
del QWEN["attention_bias"]

ENTERING = ("input_layernorm", "post_attention_layernorm")
LEAVING = ("post_attention_layernorm", "post_feedforward_layernorm")
ENCLOSING = (*ENTERING, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def load(config, prefix="model.", norms=ENTERING, head_norm=None, fused=False, bias=False, others=()):
    """The model of a configuration, from tensors of its sizes under the names of its files."""
    sizes = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256} | TEXT
    sizes = config if "text_config" not in config else sizes
    width, hidden, heads = (sizes[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads"))
    size = sizes.get("head_dim", width // heads)
    query, key = heads * size, sizes["num_key_value_heads"] * size
    layer = {f"{norm}.weight": (width,) for norm in norms}
    layer |= {"self_attn.o_proj.weight": (width, query), "mlp.down_proj.weight": (width, hidden)}
    if fused:
        layer |= {"self_attn.qkv_proj.weight": (query + 2 * key, width), "mlp.gate_up_proj.weight": (2 * hidden, width)}
    else:
        layer |= {f"self_attn.{n}_proj.weight": (rows, width) for n, rows in zip("qkv", (query, key, key), strict=True)}
        layer |= {f"mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
    if bias:
        layer |= {f"self_attn.{n}_proj.bias": (rows,) for n, rows in zip("qkv", (query, key, key), strict=True)}
    if head_norm is not None:
        each = {"each": (size, size), "whole": (query, key)}[head_norm]
        layer |= {f"self_attn.{n}_norm.weight": (rows,) for n, rows in zip("qk", each, strict=True)}
    shapes = {f"{prefix}embed_tokens.weight": (sizes["vocab_size"], width), f"{prefix}norm.weight": (width,)}
    if not config.get("tie_word_embeddings", "Gemma" in str(config) or "SmolLM3" in str(config)):
        shapes["lm_head.weight"] = (sizes["vocab_size"], width)
    for i in range(sizes["num_hidden_layers"]):
        shapes |= {f"{prefix}layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= dict.fromkeys(others, (3, 3))
    checkpoint = checkpoint_of({k: np.broadcast_to(np.float16(0), shape) for k, shape in shapes.items()}, config)
    return find_family(checkpoint).load(checkpoint)


def every(count, near, far, layers):
    """Layers of which the last of every ``count`` is ``far``."""
    return tuple(near if (i + 1) % count else far for i in range(layers))


def test_gemma_2_2b():
    found = load(GEMMA2, norms=ENCLOSING)
    assert found.description.kinds() == every(2, LayerKind(4096, Rotary()), LayerKind(0, Rotary()), 26)
    assert (found.description.attention_scale, found.description.embedding_scale) == (1 / 16, 48.0)
    assert (found.description.attention_softcap, found.description.logit_softcap) == (50.0, 30.0)
    assert found.decoding.stop_tokens == (1,)


def test_gemma_3_1b():
    found = load(GEMMA3, norms=ENCLOSING, head_norm="each")
    assert found.description.kinds() == every(6, LayerKind(512, Rotary()), LayerKind(0, Rotary(base=1e6)), 26)
    assert (found.description.attention_softcap, found.description.logit_softcap) == (0.0, 0.0)
    assert found.decoding.stop_tokens == (1, 106)


def test_gemma_3_4b():
    vision = ("vision_tower.vision_model.post_layernorm.weight", "multi_modal_projector.mm_input_projection_weight")
    found = load(PICTURES, "language_model.model.", ENCLOSING, "each", others=vision)
    far = Rotary(base=1e6, scaling=RotaryScaling("linear", 8.0))
    assert found.description.kinds() == every(6, LayerKind(1024, Rotary()), LayerKind(0, far), 34)
    assert (found.description.positions, found.description.vocab_size) == (131072, 262208)
    assert found.decoding.stop_tokens == (1, 106)


@pytest.mark.parametrize(("config", "size"), [(PHI3, 0), (PHI4_MINI, 96)])
def test_phi_3_mini_128k_and_phi_4_mini(config, size):
    found = load(config, fused=True).description
    strength = math.sqrt(1 + math.log(32) / math.log(4096))
    scaling = RotaryScaling("factors", factors=tuple(FACTORS), attention_factor=strength)
    assert (found.positions, found.rotary) == (4096, Rotary(size=size, scaling=scaling))
    assert (found.attention_window, found.tied_head) == (0, bool(size))


def test_olmo_2_7b():
    found = load(OLMO2, norms=LEAVING, head_norm="whole").description
    assert (found.rotary, found.norm_placement, found.query_key_norm.whole) == (Rotary(base=5e5), "output", True)


def test_smollm3_3b():
    found = load(SMOLLM3).description
    assert found.kinds() == every(4, LayerKind(0, Rotary(base=5e6)), LayerKind(), 36)


def test_granite_3_2b():
    found = load(GRANITE).description
    assert (found.attention_scale, found.embedding_scale) == (1 / 64, 12.0)
    assert (found.residual_scale, found.logit_scale) == (0.22, 1 / 8)


def test_mistral_7b_of_the_first_version():
    found = load(MISTRAL).description
    assert (found.positions, found.attention_window, found.rotary) == (32768, 4096, Rotary())


def test_qwen_2_5_7b_with_yarn():
    found = load(QWEN, bias=True).description
    strength = 0.1 * math.log(4) + 1
    scaling = RotaryScaling("yarn", 4.0, 1.0, 32.0, 32768, attention_factor=strength)
    assert (found.attention_window, found.rotary) == (0, Rotary(base=1e6, scaling=scaling))
