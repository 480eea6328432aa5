"""Forward passes of Llama and GPT-2 on Hugging Face's own tensor names, one sequence at a time: oracles for the exporter."""

import math

import numpy as np

VOCABULARY, WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS, POSITIONS = 19, 16, 4, 2, 20, 2, 16


def draw(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.normal(1 if len(shape) == 1 and not name.endswith("bias") else 0, 0.4, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def llama_tensors(tied=False, bias=False):
    size = WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {} if tied else {"lm_head.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, outputs, inputs in (
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", KV_HEADS * size, WIDTH),
            ("self_attn.v_proj", KV_HEADS * size, WIDTH),
            ("self_attn.o_proj", WIDTH, WIDTH),
            ("mlp.gate_proj", HIDDEN, WIDTH),
            ("mlp.up_proj", HIDDEN, WIDTH),
            ("mlp.down_proj", WIDTH, HIDDEN),
        ):
            shapes[f"{prefix}.{name}.weight"] = (outputs, inputs)
            if bias and name.split(".")[1][0] in "qkv":
                shapes[f"{prefix}.{name}.bias"] = (outputs,)
    return draw(shapes)


def gpt2_tensors(prefix="transformer.", image=False):
    shapes = {f"{prefix}wte.weight": (VOCABULARY, WIDTH), f"{prefix}wpe.weight": (POSITIONS, WIDTH)}
    norms = [f"{prefix}ln_f"]
    for layer in range(LAYERS):
        block = f"{prefix}h.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for name, inputs, outputs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes |= {f"{block}.{name}.weight": (inputs, outputs), f"{block}.{name}.bias": (outputs,)}
    parts = ("weight",) if image else ("weight", "bias")
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in parts}
    return draw(shapes | ({"lm_head.weight": (VOCABULARY - 1, WIDTH)} if image else {}))


def softmax(scores):
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def attend(query, key, value):
    """(T, heads, size) each, causal."""
    scores = np.einsum("thd,shd->hts", query, key) / math.sqrt(query.shape[-1])
    scores = np.where(np.tri(len(query), dtype=bool), scores, -np.inf)
    return np.einsum("hts,shd->thd", softmax(scores), value).reshape(len(query), -1)


def llama_logits(tensors, tokens, bias=False):
    t = {name.removeprefix("model."): array.astype(np.float64) for name, array in tensors.items()}
    size = WIDTH // HEADS
    angle = np.arange(len(tokens))[:, None, None] / 10000 ** (np.arange(0, size, 2) / size)

    def norm(name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * t[f"{name}.weight"]

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    def turn(x):
        rotated = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * np.exp(1j * angle)
        return np.concatenate([rotated.real, rotated.imag], axis=-1)

    x = t["embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        y = norm(f"{block}.input_layernorm", x)
        query, key, value = (linear(f"{block}.self_attn.{n}_proj", y).reshape(len(y), -1, size) for n in "qkv")
        key, value = (np.repeat(heads, HEADS // KV_HEADS, axis=1) for heads in (turn(key), value))
        x = x + linear(f"{block}.self_attn.o_proj", attend(turn(query), key, value))
        y = norm(f"{block}.post_attention_layernorm", x)
        gate = linear(f"{block}.mlp.gate_proj", y)
        x = x + linear(f"{block}.mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(f"{block}.mlp.up_proj", y))
    return norm("norm", x) @ t.get("lm_head.weight", t["embed_tokens.weight"]).T


def gpt2_logits(tensors, tokens, image=False):
    t = {name.removeprefix("transformer."): array.astype(np.float64) for name, array in tensors.items()}

    def norm(name, x):
        if image:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * t[f"{name}.weight"]
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return y * t[f"{name}.weight"] + t[f"{name}.bias"]

    def conv1d(name, x):
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    def activation(x):
        if image:
            return x / (1 + np.exp(-1.702 * x))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = t["wte.weight"][tokens] + t["wpe.weight"][: len(tokens)]
    for layer in range(LAYERS):
        block = f"h.{layer}"
        joined = conv1d(f"{block}.attn.c_attn", norm(f"{block}.ln_1", x))
        heads = (part.reshape(len(x), HEADS, -1) for part in np.split(joined, 3, axis=1))
        x = x + conv1d(f"{block}.attn.c_proj", attend(*heads))
        x = x + conv1d(f"{block}.mlp.c_proj", activation(conv1d(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))))
    return norm("ln_f", x) @ t.get("lm_head.weight", t["wte.weight"]).T
