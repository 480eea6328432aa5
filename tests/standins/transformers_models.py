"""Small models of transformers' own architectures with random weights, and their graphs beside them."""

import numpy as np
import pytest

from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family
from coupled_sampling.export.graphs.decoder import write_decoder_graph
from standins.exported_windows import LENGTH, difference_of_windows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE, VOCABULARY = 1e-4, 61
"""Largest difference of logits, which have a standard deviation of 1 to 10."""

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}


def build(config, model_class, seed=0):
    """A model of a configuration, every parameter drawn anew."""
    # Softcaps are forgotten by transformers' other ways of attention.
    model = getattr(transformers, model_class)._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
            elif "lm_head" in name:
                parameter.copy_(noise * 3 / parameter.shape[1] ** 0.5)
            elif any(table in name for table in ("embed_tokens", "wte", "wpe")):
                parameter.copy_(0.7 * noise)
            else:
                # A Conv1D is (inputs, outputs); with both near each other this is the usual scale, larger than usual.
                parameter.copy_(1.2 * noise / min(parameter.shape) ** 0.5)
    return model


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(tokens)[None], use_cache=False).logits[0].numpy()


def furthest(path, model):
    """Largest difference over ragged windows, and the spread of the logits."""
    generated = slice(0, logits_of(model, np.zeros(1, np.int64)).shape[1])
    return difference_of_windows(path, lambda tokens: logits_of(model, tokens), VOCABULARY, generated)


def export(folder, tmp_path, positions=LENGTH):
    with open_checkpoint(folder) as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, positions)
        path = tmp_path / "model.onnx"
        write_decoder_graph(exportable.description, exportable.weights, path)
    return exportable, path
