"""Cosmos' exported graph against a re-reading of the published code in PyTorch, on small models saved by PyTorch itself.

The modules here were written from the facts of the published source and not run beside it. Run with -s for the table.
"""

import numpy as np
import pytest

from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from standins.cosmos_models import LARGE, SMALL, cosmos_tensors
from standins.exported_windows import LENGTH, difference_of_windows, one_thread, print_table

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TOLERANCE, CLIP = 1e-4, (5, 2, 4)
MODELS = {"as 4B": SMALL, "as 12B": LARGE}
FURTHEST = {}

one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    print_table(FURTHEST, "PyTorch")


class Model(torch.nn.Module):
    """The whole sequence at once, by PyTorch's own attention."""

    def __init__(self, sizes, state):
        super().__init__()
        self.sizes, self.state = sizes, state
        size, (frames, rows, columns) = sizes["head"], CLIP
        space = size // 6 * 2
        places = torch.cartesian_prod(*(torch.arange(count) for count in (frames, rows, columns))).float()
        angles = []
        for axis, entries in enumerate((size - 2 * space, space, space)):
            frequency = 1.0 / 500_000 ** (torch.arange(0, entries, 2).float() / entries)
            if sizes["stretched"]:
                wavelength = 2 * torch.pi / (3 if axis == 0 else 40)
                share = ((frequency - wavelength) / (4 * wavelength - wavelength)).clamp(0, 1)
                frequency = frequency / 2 * (1 - share) + frequency * share
            angles.append(places[:, axis, None] * frequency)
        self.angles = torch.cat(angles + angles, dim=1)

    def linear(self, x, name):
        return torch.nn.functional.linear(x, self.state[f"{name}.weight"])

    def norm(self, x, name):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.state[f"{name}.weight"], 1e-5)

    def turn(self, heads):
        angles = self.angles[: heads.shape[1]]
        first, second = heads.chunk(2, dim=-1)
        return heads * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    def forward(self, tokens):
        x = torch.nn.functional.embedding(tokens, self.state["tok_embeddings.weight"])
        for i in range(self.sizes["layers"]):
            name = f"layers.{i}.attention"
            y = self.norm(x, f"{name}_norm")
            query, key, value = (
                self.linear(y, f"{name}.w{part}").unflatten(-1, (-1, self.sizes["head"])).transpose(0, 1)
                for part in "qkv"
            )
            query, key = self.turn(self.norm(query, f"{name}.q_norm")), self.turn(self.norm(key, f"{name}.k_norm"))
            repeats = self.sizes["heads"] // self.sizes["kv_heads"]
            key, value = (part.repeat_interleave(repeats, dim=0) for part in (key, value))
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.linear(mixed.transpose(0, 1).flatten(1), f"{name}.wo")
            name = f"layers.{i}.feed_forward"
            y = self.norm(x, f"layers.{i}.ffn_norm")
            x = x + self.linear(
                torch.nn.functional.silu(self.linear(y, f"{name}.w1")) * self.linear(y, f"{name}.w3"), f"{name}.w2"
            )
        return self.linear(self.norm(x, "norm"), "output")


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_gives_the_models_logits(model, tmp_path):
    sizes = MODELS[model]
    state = {name: torch.from_numpy(array) for name, array in cosmos_tensors(sizes).items()}
    torch.save({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(f'{{"video_latent_shape": {list(CLIP)}}}')
    with open_checkpoint(tmp_path) as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint)
        assert exportable.description.positions == LENGTH
        write_decoder_graph(exportable.description, exportable.weights, tmp_path / "window.onnx")
    reading = Model(sizes, state)

    def scores(tokens):
        with torch.no_grad():
            return reading(torch.from_numpy(np.asarray(tokens))).numpy()

    FURTHEST[model] = difference_of_windows(tmp_path / "window.onnx", scores, sizes["codes"], slice(sizes["codes"]))
    assert FURTHEST[model][0] <= TOLERANCE
    assert FURTHEST[model][1] > 1
