"""Exported picture models against PyTorch: small models of the real architectures with random weights, saved and read back.

Janus, Chameleon and Emu3 are transformers' own classes. Checkpoints in the authors' layouts are made from these by renaming,
after the published sources. LlamaGen is re-implemented here from its published source and was not run against the original
weights. Every parameter is random, and every case names wrong readings that must show. Run with -s for the table.
"""

import dataclasses
import json
import math

import numpy as np
import pytest

from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from coupled_sampling.export.graphs.description import Norm, QueryKeyNorm
from coupled_sampling.export.graphs.rotary import GridRotary
from standins.exported_windows import LENGTH, difference_of_windows, one_thread, print_table
from standins.wrong_readings import assert_they_show, changed, epsilon, rotary, without

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE, CODES = 1e-4, 20
"""Largest difference of logits, which have a standard deviation of 1 to 20; picture tokens."""

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
PICTURES = {"latent_channels": 8, "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
FURTHEST = {}

one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print_table(FURTHEST, "PyTorch")


def drawn(name, shape, generator):
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.3 * noise
    if len(shape) == 1 or "_norm.weight" in name:
        return 1 + 0.3 * noise
    if any(table in name for table in ("embed", "codebook")):
        return 0.7 * noise
    if any(head in name for head in ("lm_head", "vision_head", "output.weight")):
        return noise * 3 / shape[1] ** 0.5
    return 1.2 * noise / shape[-1] ** 0.5


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn(name, parameter.shape, generator))
    return model.eval()


def write_checkpoint(folder, tensors, config):
    folder.mkdir()
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def chameleon(folder, *, lumina=False, **sizes):
    names = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 4 + i for i in range(CODES)}
    names |= {"<eoss>": 24, "<racm3:break>": 25, "<reserved08799>": 30, "<image>": 31, "<reserved08824>": 32}
    vq = PICTURES | {"embed_dim": 6, "num_embeddings": CODES, "resolution": 32}
    config = transformers.ChameleonConfig(**SIZES | sizes, vocab_size=40, vocabulary_map=names, vq_config=vq)
    model = randomised(transformers.ChameleonForConditionalGeneration(config))
    model.save_pretrained(folder)
    if lumina:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mask_image_logits": False, "dropout": 0.0}))

    def logits(tokens):
        # The model's own logits of picture tokens are masked, so the head is applied here.
        return model.lm_head(model.model(input_ids=tokens, use_cache=False).last_hidden_state)

    return logits, (4, 27 if lumina else CODES), 40


def janus(folder, *, own=False, depth=2):
    words = 33
    text = {"model_type": "llama", "vocab_size": words, **SIZES}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    vision |= {"projection_dim": 48, "num_image_tokens": 16}
    vq = PICTURES | {"embed_dim": 6, "num_embeddings": CODES, "projection_dim": 48, "image_token_embed_dim": 48}
    config = transformers.JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq | {"num_hidden_layers": depth}, image_token_id=32
    )
    model = randomised(transformers.JanusForConditionalGeneration(config))
    if own:
        write_checkpoint(folder, dict(_renamed_janus(model.state_dict())), _own_janus_config(depth))
    else:
        model.save_pretrained(folder)

    def logits(tokens):
        is_code = tokens >= words
        embedded = model.get_input_embeddings()(torch.where(is_code, 0, tokens))
        codes = model.prepare_embeddings_for_image_generation(torch.where(is_code, tokens - words, 0))
        inputs = torch.where(is_code[..., None], codes, embedded)
        return model.model.generation_head(model.model.language_model(inputs_embeds=inputs).last_hidden_state)

    return logits, (words, CODES), words + CODES


def _renamed_janus(tensors):
    """Names of deepseek-ai/Janus, ``janus/models/modeling_vlm.py`` and ``projector.py``."""
    for name, tensor in tensors.items():
        rest = name.removeprefix("model.")
        if rest.startswith("generation_aligner."):
            _, kind, *last = rest.split(".")
            number = 0 if kind == "fc1" else 2 * (int(last[0]) + 1)
            yield f"gen_aligner.layers.{number}.{last[-1]}", tensor
            continue
        for theirs, ours in (
            ("language_model.", "language_model.model."),
            ("generation_embeddings.", "gen_embed."),
            ("generation_head.proj_out.", "gen_head.output_mlp_projector."),
            ("generation_head.vision_head.", "gen_head.vision_head."),
            ("vqmodel.", "gen_vision_model."),
            ("lm_head.", "language_model.lm_head."),
        ):
            if rest.startswith(theirs):
                rest = ours + rest.removeprefix(theirs)
                break
        yield rest, tensor


def _own_janus_config(depth):
    aligner = {"depth": depth, "input_dim": 6, "n_embed": 48, "projector_type": "mlp_gelu"}
    head = {"image_token_embed": 48, "image_token_size": CODES, "n_embed": 48}
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "language_config": {"model_type": "llama", "vocab_size": 33, "torch_dtype": "bfloat16", **SIZES},
        "gen_aligner_config": {"model_type": "gen_aligner", "cls": "MlpProjector", "params": aligner},
        "gen_head_config": {"model_type": "gen_head", "cls": "vision_head", "params": head},
        "gen_vision_config": {"model_type": "gen_vision", "cls": "VQ-16", "params": {"image_token_size": CODES}},
        "vision_config": {"model_type": "vision", "cls": "CLIPVisionTower", "params": {}},
        "aligner_config": {"model_type": "aligner", "cls": "MlpProjector", "params": {}},
    }


def emu3(folder, *, own=False, newer=False):
    names = {"<|extra_200|>": 28, "<|extra_201|>": 29, "<|extra_203|>": 30, "<|extra_204|>": 31, "<image>": 27}
    names |= {"<|image token|>": 32, "<|image start|>": 33, "<|image end|>": 34}
    names |= {f"<|visual token {i:06d}|>": 35 + i for i in range(CODES)}
    vq = PICTURES | {"codebook_size": CODES, "embed_dim": 4, "attn_resolutions": [], "hidden_size": 32}
    text = SIZES | {"vocab_size": 55, "pad_token_id": 0, "bos_token_id": 30, "eos_token_id": 31}
    config = transformers.Emu3Config(text_config=text, vq_config=vq, vocabulary_map=names)
    model = randomised(transformers.Emu3ForConditionalGeneration(config))
    if own:
        numbers = {"eol_token_id": 28, "eof_token_id": 29, "img_token_id": 32, "boi_token_id": 33, "eoi_token_id": 34}
        rest = {"model_type": "Emu3", "rope_theta": 1e6, "rope_scaling": None, "image_area": 512, "pretraining_tp": 1}
        tensors = {name.replace("model.text_model.", "model."): tensor for name, tensor in model.state_dict().items()}
        tensors = {name: tensor for name, tensor in tensors.items() if "vqmodel" not in name}
        write_checkpoint(folder, tensors, text | numbers | rest)
    elif newer:
        write_checkpoint(folder, model.state_dict(), config.to_dict())
    else:
        model.save_pretrained(folder)
    return lambda tokens: model(input_ids=tokens, use_cache=False).logits, (28, 27), 55


def llamagen(folder, *, heads=4, kv_heads=4):
    width, hidden, side, classes, layers, epsilon = 48, 64, 7, 9, 3, 1e-3
    size = width // heads
    shapes = {"tok_embeddings.weight": (CODES, width), "cls_embedding.embedding_table.weight": (classes + 1, width)}
    for i in range(layers):
        shapes |= {f"layers.{i}.{norm}.weight": (width,) for norm in ("attention_norm", "ffn_norm")}
        shapes[f"layers.{i}.attention.wqkv.weight"] = ((heads + 2 * kv_heads) * size, width)
        shapes[f"layers.{i}.attention.wo.weight"] = (width, width)
        shapes |= {f"layers.{i}.feed_forward.{name}.weight": (hidden, width) for name in ("w1", "w3")}
        shapes[f"layers.{i}.feed_forward.w2.weight"] = (width, hidden)
    shapes |= {"norm.weight": (width,), "output.weight": (CODES, width)}
    generator = torch.Generator().manual_seed(0)
    weights = {name: drawn(name, shape, generator) for name, shape in shapes.items()}
    config = {"model_type": "llamagen", "block_size": side**2, "n_head": heads, "num_classes": classes}
    config |= {"norm_eps": epsilon} | ({"n_kv_head": kv_heads} if kv_heads != heads else {})
    write_checkpoint(folder, weights, config)

    # A complex factor for each pair of a head: the first half of them by row, the second by column, nought for the class.
    angle = 10000.0 ** (-torch.arange(0, size // 2, 2) / (size // 2))
    row, column = torch.arange(side**2).div(side, rounding_mode="floor"), torch.arange(side**2) % side
    angles = torch.cat([row[:, None] * angle, column[:, None] * angle], dim=1)
    turns = torch.cat([torch.zeros(1, size // 2, dtype=torch.complex64), torch.polar(torch.ones_like(angles), angles)])

    def turned(x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turns[: x.shape[1], None]).flatten(-2)

    def norm(x, name):
        return torch.nn.functional.rms_norm(x, (width,), weights[name], epsilon)

    def logits(tokens):
        x = torch.cat([weights["tok_embeddings.weight"], weights["cls_embedding.embedding_table.weight"]])[tokens]
        for i in range(layers):
            w = {name.removeprefix(f"layers.{i}."): tensor for name, tensor in weights.items()}
            y = norm(x, f"layers.{i}.attention_norm.weight") @ w["attention.wqkv.weight"].T
            y = y.reshape(*y.shape[:2], -1, size)
            query, key, value = y.split([heads, kv_heads, kv_heads], dim=2)
            query, key, value = (part.transpose(1, 2) for part in (turned(query), turned(key), value))
            key, value = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (key, value))
            y = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + y.transpose(1, 2).flatten(2) @ w["attention.wo.weight"].T
            y = norm(x, f"layers.{i}.ffn_norm.weight")
            gate, up = (y @ w[f"feed_forward.{name}.weight"].T for name in ("w1", "w3"))
            x = x + (torch.nn.functional.silu(gate) * up) @ w["feed_forward.w2.weight"].T
        return norm(x, "norm.weight") @ weights["output.weight"].T

    return logits, (0, CODES), CODES + classes + 1


def rolled(ending):
    """A reading whose rows are one off: of tokens, or of heads."""

    def wrong(description, weights):
        return description, lambda name: np.roll(weights(name), 1, 0) if name.endswith(ending) else weights(name)

    return wrong


def renamed(old, new):
    return lambda description, weights: (description, lambda name: weights(name.replace(new, old)))


def norms_at_inputs(description, weights):
    def read(name):
        for part in ("attention", "mlp"):
            name = name.replace(f".{part}_norm.", f".{part}_output_norm.")
        return weights(name)

    return dataclasses.replace(description, norm_placement="input"), read


SWIGLU = [renamed("mlp.gate", "mlp.up"), renamed("mlp.up", "mlp.gate")]
PLAIN_NORM = changed(query_key_norm=QueryKeyNorm(Norm("layer", 1e-2), per_head=True))
HEADS = [without("query_norm.bias"), without("key_norm.bias"), rolled("query_norm.weight"), rolled("key_norm.weight")]
CASES = {
    "Chameleon": (chameleon, {}, [*HEADS, PLAIN_NORM, epsilon, rolled("head.weight"), rotary(pairs="interleaved")]),
    "Chameleon, norms at outputs (34B), all biases": (
        chameleon,
        {"swin_norm": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
        [
            *HEADS,
            norms_at_inputs,
            without("attention.output.bias"),
            without("up.bias"),
        ],
    ),
    "Lumina-mGPT": (chameleon, {"lumina": True}, [*HEADS, rolled("head.weight")]),
    "Janus": (
        janus,
        {},
        [rolled("embedding.1.weight"), rolled("head.bias"), without("head.hidden.bias"), epsilon, *SWIGLU],
    ),
    "Janus, aligner of 1 map": (janus, {"depth": 1}, [without("embedding.1.weight")]),
    "Janus, aligner of 3 maps, DeepSeek's names": (janus, {"own": True, "depth": 3}, [rolled("embedding.0.weight")]),
    "Emu3, names of save_pretrained": (emu3, {}, [rotary(base=10000.0), rolled("head.weight"), epsilon]),
    "Emu3, names of the class": (emu3, {"newer": True}, [rotary(base=10000.0), *SWIGLU]),
    "Emu3, BAAI's names": (emu3, {"own": True}, [rotary(base=10000.0), rolled("head.weight")]),
    "LlamaGen (re-implemented)": (
        llamagen,
        {},
        [
            rotary(grid=None),
            rotary(pairs="half"),
            rotary(grid=GridRotary(7, 7, prefix=0)),
            rotary(grid=GridRotary(10, 5)),
            *SWIGLU,
            rolled("embedding.1.weight"),
        ],
    ),
    "LlamaGen (re-implemented), grouped keys": (llamagen, {"kv_heads": 2}, [renamed("key", "value"), epsilon]),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_are_scored_as_by_pytorch(case, tmp_path):
    make, settings, wrong_readings = CASES[case]
    logits, (first, count), vocabulary = make(tmp_path / "checkpoint", **settings)
    generated = slice(first, first + count)

    def scores(tokens):
        with torch.no_grad():
            found = logits(torch.as_tensor(tokens)[None])[0].numpy()
        return found[:, generated] if found.shape[1] == vocabulary else found

    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, None if make is llamagen else LENGTH)
        path = tmp_path / "model.onnx"
        write_decoder_graph(exportable.description, exportable.weights, path)
        difference, spread = FURTHEST[case] = difference_of_windows(path, scores, vocabulary, generated)
        assert difference <= TOLERANCE
        assert 1 <= spread <= 20
        tokens = np.random.default_rng(1).integers(0, vocabulary, LENGTH)
        expected = scores(tokens)
        assert_they_show(exportable, wrong_readings, tokens, expected, generated, TOLERANCE)


def test_transformers_forbids_the_picture_tokens_that_are_exported(tmp_path):
    chameleon(tmp_path / "checkpoint")
    model = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        masked = model(input_ids=torch.arange(8)[None]).logits[0, :, 4 : 4 + CODES]
    assert (masked == torch.finfo(masked.dtype).min).all()


def test_the_embedding_of_a_picture_token_is_janus_own(tmp_path):
    janus(tmp_path / "checkpoint")
    model = transformers.JanusForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        expected = model.prepare_embeddings_for_image_generation(torch.arange(CODES)).numpy()
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        found = find_family(checkpoint).load(checkpoint).weights("embedding.1.weight")
    np.testing.assert_allclose(found, expected, atol=1e-6 * math.sqrt(48))
