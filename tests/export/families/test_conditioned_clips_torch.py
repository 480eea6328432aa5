"""The structure of Cosmos-Predict1 Video2World in PyTorch, small and random, beside graphs exported from what PyTorch saves.

It is read anew from the published description of the model (nvidia-cosmos/cosmos-predict1, cosmos_predict1/autoregressive/networks/
transformer.py and modules/attention.py, embedding.py), under the checkpoint's own names: text by cross attention in every layer to
all rows of the context, positions added in every layer, rotary positions over frames, rows and columns, and a token that begins a
video, which has neither and is never generated.
"""

import numpy as np
import pytest

from coupled_sampling.export import (
    CrossAttention,
    DecoderDescription,
    GridRotary,
    LayerPositions,
    Norm,
    QueryKeyNorm,
    Rotary,
)
from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.graphs.condition_graph import condition_graph
from coupled_sampling.export.graphs.decoder import decoder_graph
from standins.conditioned import ConditionedRun, some_vectors

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WIDTH, LAYERS, HEADS, KV_HEADS, SIZE, HIDDEN = 56, 3, 4, 2, 14, 40
CODES, BEGIN, CONTEXT, CONTEXT_SIZE = 30, 30, 512, 20
CLIP = FRAMES, ROWS, COLUMNS = 2, 3, 4
LENGTH = 1 + FRAMES * ROWS * COLUMNS
GRID = {"frames": FRAMES, "rows": ROWS, "columns": COLUMNS, "prefix": 1}
DESCRIPTION = DecoderDescription(
    vocab_size=CODES + 1,
    positions=LENGTH,
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_size=SIZE,
    mlp_width=HIDDEN,
    norm=Norm("rms", 1e-5),
    rotary=Rotary("half", 500000.0, grid=GridRotary(**GRID, prefix_vanishes=False)),
    query_key_norm=QueryKeyNorm(Norm("rms", 1e-5)),
    generated=CODES,
    layer_positions=LayerPositions(**GRID),
    condition=CrossAttention(CONTEXT, CONTEXT_SIZE),
)
NAMES = {
    "embedding.weight": "tok_embeddings.weight",
    "norm.weight": "norm.weight",
    "head.weight": "output.weight",
}
LAYER_NAMES = {
    "mlp_norm": "ffn_norm",
    "mlp.gate": "feed_forward.w1",
    "mlp.up": "feed_forward.w3",
    "mlp.down": "feed_forward.w2",
}
for part in ("attention", "cross_attention"):
    LAYER_NAMES[f"{part}_norm"] = f"{part}_norm"
    for ours, theirs in (("query", "wq"), ("key", "wk"), ("value", "wv"), ("output", "wo")):
        LAYER_NAMES[f"{part}.{ours}"] = f"{part}.{theirs}"
    for ours, theirs in (("query", "q"), ("key", "k")):
        LAYER_NAMES[f"{part}.{ours}_norm"] = f"{part}.{theirs}_norm"


def cosmos_name(name):
    if name in NAMES:
        return NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"layers.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def random_weights():
    """By Cosmos' names; the embedding has rows that nothing uses."""
    random, made = np.random.default_rng(0), {}
    for name, shape in DESCRIPTION.weight_shapes().items():
        spread = random.normal(size=shape)
        made[cosmos_name(name)] = 1 + 0.3 * spread if len(shape) == 1 else 1.5 * spread / shape[-1] ** 0.5
    made["tok_embeddings.weight"] = np.pad(made["tok_embeddings.weight"], ((0, 33), (0, 0)), constant_values=9.0)
    return {name: value.astype(np.float32) for name, value in made.items()}


def rms(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def attend(query, key, value, causal):
    key, value = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), is_causal=causal
    )
    return mixed.transpose(0, 1).flatten(1)


def angles_and_positions(count):
    """Angles (T, SIZE / 2) and what is added to every layer (T, WIDTH): nothing of either for the token that begins."""
    place = torch.cartesian_prod(*(torch.arange(size) for size in CLIP)).double()  # frame slowest, column fastest
    space = 2 * (SIZE // 6)
    pairs = [(SIZE - 2 * space) // 2, space // 2, space // 2]
    turns = [place[:, [i]] * 500000.0 ** (-torch.arange(n).double() / n) for i, n in enumerate(pairs)]
    space = 2 * (WIDTH // 6)
    added = []
    for i, n in enumerate((WIDTH - 2 * space, space, space)):
        inner = place[:, [i]] * 10000.0 ** (-torch.arange(n // 2).double() / (n / 2))
        added += [inner.sin(), inner.cos()]
    both = (torch.cat(turns, 1), torch.cat(added, 1))
    return [torch.cat([torch.zeros(1, part.shape[1]), part])[:count].float() for part in both]


def cosmos_logits(weights, tokens, context):
    w = {name: torch.as_tensor(value) for name, value in weights.items()}
    turns, added = angles_and_positions(len(tokens))
    context = torch.cat([context, torch.zeros(CONTEXT - len(context), CONTEXT_SIZE)])
    x = w["tok_embeddings.weight"][tokens]

    def heads(name, norm, source, count):
        made = (source @ w[f"{name}.weight"].T).unflatten(1, (count, SIZE))
        return made if norm is None else rms(made, w[f"{norm}.weight"])

    def turned(part):
        cos, sin = (torch.cat([one, one], 1)[:, None] for one in (turns.cos(), turns.sin()))
        first, second = part.chunk(2, dim=-1)
        return part * cos + torch.cat([-second, first], dim=-1) * sin

    for layer in range(LAYERS):
        x = x + added
        for name, norm in (("attention", "attention_norm"), ("cross_attention", "cross_attention_norm")):
            part = f"layers.{layer}.{name}"
            y = rms(x, w[f"layers.{layer}.{norm}.weight"])
            source, own = (y, True) if name == "attention" else (context, False)
            query = heads(f"{part}.wq", f"{part}.q_norm", y, HEADS)
            key, value = (
                heads(f"{part}.wk", f"{part}.k_norm", source, KV_HEADS),
                heads(f"{part}.wv", None, source, KV_HEADS),
            )
            if own:
                query, key = turned(query), turned(key)
            x = x + attend(query, key, value, own) @ w[f"{part}.wo.weight"].T
        block = f"layers.{layer}.feed_forward"
        y = rms(x, w[f"layers.{layer}.ffn_norm.weight"])
        x = (
            x
            + (torch.nn.functional.silu(y @ w[f"{block}.w1.weight"].T) * (y @ w[f"{block}.w3.weight"].T))
            @ w[f"{block}.w2.weight"].T
        )
    return rms(x, w["norm.weight"]) @ w["output.weight"].T


@pytest.mark.parametrize("given", [CONTEXT, 4])
def test_windows_are_scored_as_by_pytorch(given, tmp_path):
    weights, random, furthest = random_weights(), np.random.default_rng(1), 0.0
    torch.save({f"model.{name}": torch.as_tensor(value) for name, value in weights.items()}, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(f'{{"video_latent_shape": {list(CLIP)}}}')
    with open_checkpoint(tmp_path) as checkpoint:
        found = find_family(checkpoint).load(checkpoint)
        assert found.description == DESCRIPTION
        graphs = [write(DESCRIPTION, found.weights) for write in (decoder_graph, condition_graph)]
    run = ConditionedRun(*graphs, 2)
    contexts = [some_vectors(given, CONTEXT_SIZE, seed=row).astype(np.float32) for row in range(2)]
    for row, context in enumerate(contexts):
        run.begin(row, context)
    tokens = random.integers(0, CODES, (2, LENGTH))
    tokens[:, 0] = BEGIN
    for starts, width in (([0, 0], 9), ([9, 5], 6), ([15, 3], 1), ([4, 1], 8), ([12, 9], 13)):
        for row, start in enumerate(starts):
            fresh = max(start, 1)
            tokens[row, fresh:] = random.integers(0, CODES, LENGTH - fresh)
        scores = run(np.stack([tokens[row, start : start + width] for row, start in enumerate(starts)]), starts)
        assert np.isneginf(scores[..., BEGIN]).all()
        for row, start in enumerate(starts):
            sequence = torch.as_tensor(tokens[row, : start + width])
            expected = cosmos_logits(weights, sequence, torch.as_tensor(contexts[row])).numpy()[start:]
            assert expected.std() > 0.5
            furthest = max(furthest, float(np.abs(scores[row][:, :CODES] - expected).max()))
    print(f"as 5B, {given} vectors: logits differ from PyTorch's by at most {furthest:.1e}")
    assert furthest <= 1e-4
