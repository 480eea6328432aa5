"""Forward passes of the picture models' decoders on their own tensor names: oracles for the exporter."""

import math

import numpy as np

WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS, WORDS, CODES, EPSILON, SIDE = 16, 4, 2, 20, 2, 37, 12, 1e-3, 3
SIZE = WIDTH // HEADS

BACKBONE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": HIDDEN,
    "rms_norm_eps": EPSILON,
}
"""Keys of a configuration that picture models built on Llama share."""

BAAI = BACKBONE | {
    "model_type": "Emu3",
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    "eol_token_id": 17,
    "eof_token_id": 18,
    "bos_token_id": 20,
    "img_token_id": 22,
    "boi_token_id": 23,
    "eoi_token_id": 24,
    "image_area": (8 * SIDE) ** 2,
}
"""Emu3 as BAAI configures it."""

LLAMAGEN_CONFIG = {
    "model_type": "llamagen",
    "block_size": SIDE**2,
    "n_head": HEADS,
    "num_classes": 6,
    "norm_eps": EPSILON,
}


def draw(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.normal(1 if len(shape) == 1 and "bias" not in name else 0, 0.4, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def backbone_tensors(prefix, words=WORDS, head="lm_head.weight", heads_normed=False):
    shapes = {f"{prefix}embed_tokens.weight": (words, WIDTH), f"{prefix}norm.weight": (WIDTH,), head: (words, WIDTH)}
    for layer in range(LAYERS):
        block = f"{prefix}layers.{layer}"
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (heads * SIZE, WIDTH)
            if heads_normed and name != "v":
                shapes |= {f"{block}.self_attn.{name}_norm.{part}": (heads, SIZE) for part in ("weight", "bias")}
        shapes[f"{block}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        shapes |= {f"{block}.mlp.{name}_proj.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        shapes |= {f"{block}.{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
    return draw(shapes)


def janus_tensors():
    shapes = {"generation_embeddings.weight": (CODES, 5), "generation_aligner.fc1.weight": (WIDTH, 5)}
    shapes |= {
        "generation_aligner.hidden_layers.0.weight": (WIDTH, WIDTH),
        "generation_head.proj_out.weight": (WIDTH, WIDTH),
    }
    shapes |= {"generation_head.vision_head.weight": (CODES, WIDTH), "generation_head.vision_head.bias": (CODES,)}
    shapes |= {
        f"generation_{name}.bias": (WIDTH,) for name in ("aligner.fc1", "aligner.hidden_layers.0", "head.proj_out")
    }
    shapes = {f"model.{name}": shape for name, shape in shapes.items()}
    rest = {
        "model.vision_model.patch.weight": np.zeros(3),
        "model.vqmodel.x": np.zeros(2),
        "model.aligner.fc1.bias": np.zeros(2),
    }
    return backbone_tensors("model.language_model.") | draw(shapes, 1) | rest


def llamagen_tensors(classes=7):
    shapes = {"tok_embeddings.weight": (CODES, WIDTH), "cls_embedding.embedding_table.weight": (classes, WIDTH)}
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        shapes |= {f"{block}.{name}.weight": (WIDTH,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {f"{block}.attention.wqkv.weight": (3 * WIDTH, WIDTH), f"{block}.attention.wo.weight": (WIDTH, WIDTH)}
        shapes |= {f"{block}.feed_forward.{name}.weight": (HIDDEN, WIDTH) for name in ("w1", "w3")}
        shapes[f"{block}.feed_forward.w2.weight"] = (WIDTH, HIDDEN)
    return draw(shapes | {"norm.weight": (WIDTH,), "output.weight": (CODES, WIDTH)})


def attend(query, key, value):
    """(T, heads, size) each, causal; heads of keys and values are shared by groups."""
    key, value = (np.repeat(part, query.shape[1] // part.shape[1], axis=1) for part in (key, value))
    scores = np.einsum("thd,shd->hts", query, key) / math.sqrt(SIZE)
    shares = np.exp(np.where(np.tri(len(query), dtype=bool), scores, -np.inf))
    return np.einsum("hts,shd->thd", shares / shares.sum(-1, keepdims=True), value).reshape(len(query), -1)


def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def final_states(tensors, prefix, x, base=10000.0, swin=False):
    """Normalised outputs of a Llama on embeddings ``x``; with norms of heads if there are weights for them."""
    t = {name.removeprefix(prefix): array.astype(np.float64) for name, array in tensors.items()}
    angle = np.arange(len(x))[:, None, None] / base ** (np.arange(0, SIZE, 2) / SIZE)

    def heads(block, name, y):
        y = (y @ t[f"{block}.self_attn.{name}_proj.weight"].T).reshape(len(y), -1, SIZE)
        weight = f"{block}.self_attn.{name}_norm.weight"
        if weight in t:
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
            y = y * t[weight] + t[weight.replace("weight", "bias")]
        if name == "v":
            return y
        turned = (y[..., : SIZE // 2] + 1j * y[..., SIZE // 2 :]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def around(x, weight, function):
        return x + (norm(function(x), weight) if swin else function(norm(x, weight)))

    def mlp(block, y):
        gate, up = (y @ t[f"{block}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        return (silu(gate) * up) @ t[f"{block}.mlp.down_proj.weight"].T

    def attention(block, y):
        return attend(*(heads(block, name, y) for name in "qkv")) @ t[f"{block}.self_attn.o_proj.weight"].T

    for layer in range(LAYERS):
        block = f"layers.{layer}"
        x = around(x, t[f"{block}.input_layernorm.weight"], lambda y, block=block: attention(block, y))
        x = around(x, t[f"{block}.post_attention_layernorm.weight"], lambda y, block=block: mlp(block, y))
    return norm(x, t["norm.weight"])


def joint_logits(prefix, head, generated, **choices):
    def logits(tensors, tokens):
        x = tensors[f"{prefix}embed_tokens.weight"].astype(np.float64)[tokens]
        return final_states(tensors, prefix, x, **choices) @ tensors[head][generated].T

    return logits


def janus_logits(tensors, tokens):
    def linear(name, x):
        return x @ tensors[f"model.generation_{name}.weight"].T + tensors[f"model.generation_{name}.bias"]

    codes = linear("aligner.fc1", tensors["model.generation_embeddings.weight"].astype(np.float64))
    codes = linear("aligner.hidden_layers.0", gelu(codes))
    prefix = "model.language_model."
    x = final_states(tensors, prefix, np.concatenate([tensors[f"{prefix}embed_tokens.weight"], codes])[tokens])
    return linear("head.vision_head", gelu(linear("head.proj_out", x)))


def llamagen_logits(tensors, tokens):
    t = {name: array.astype(np.float64) for name, array in tensors.items()}
    x = np.concatenate([t["tok_embeddings.weight"], t["cls_embedding.embedding_table.weight"]])[tokens]
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    # A head of four has two pairs: the first turns by the row, the second by the column.
    turns = np.concatenate([np.zeros((1, 2)), np.exp(1j * np.stack([rows, columns], axis=1))])[: len(x), None]
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        y = norm(x, t[f"{block}.attention_norm.weight"]) @ t[f"{block}.attention.wqkv.weight"].T
        query, key, value = y.reshape(len(y), 3, HEADS, SIZE).transpose(1, 0, 2, 3)
        query, key = ((part[..., ::2] + 1j * part[..., 1::2]) * turns for part in (query, key))
        query, key = (np.stack([part.real, part.imag], axis=-1).reshape(value.shape) for part in (query, key))
        x = x + attend(query, key, value) @ t[f"{block}.attention.wo.weight"].T
        y = norm(x, t[f"{block}.ffn_norm.weight"])
        gate, up = (y @ t[f"{block}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ t[f"{block}.feed_forward.w2.weight"].T
    return norm(x, t["norm.weight"]) @ t["output.weight"].T


EMU3_HEAD = "text_model.lm_head.weight"
