"""GLM-Image's decoder against transformers, whose own code says where every token is: logits of windows, and a whole generation."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.export.checkpoints import open_checkpoint
from coupled_sampling.export.families import find_family, glm_image
from standins.exported_windows import LENGTH, Windows, difference_of_windows, one_thread
from standins.transformers_models import TOLERANCE, VOCABULARY, build, export
from standins.wrong_readings import assert_they_show, epsilon, without

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

one_thread = pytest.fixture(scope="module", autouse=True)(one_thread)

BEGIN, END, HEAD = 44, 61, 62
"""Tokens are drawn from below 61, so that pictures begin in most sequences, and none ends."""

SMALL, LARGE = (3, 2), (5, 6)
TEXT = {
    "vocab_size": 70,
    "vision_vocab_size": HEAD,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "eos_token_id": END,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.75,
        "mrope_section": [1, 2, 3],
    },
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2, "image_size": 32, "patch_size": 16}
VQ = {"embed_dim": 8, "num_embeddings": BEGIN, "latent_channels": 16}
GRIDS = [[1, *LARGE], [1, *SMALL]]
"""In the order of transformers' processor, which is that of the prompt."""


@pytest.fixture(scope="module")
def model():
    config = transformers.GlmImageConfig(
        text_config=TEXT,
        vision_config=VISION,
        vq_config=VQ,
        image_start_token_id=BEGIN,
        image_end_token_id=END,
        image_token_id=69,
    )
    return build(config, "GlmImageForConditionalGeneration")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm")
    model.save_pretrained(folder / "checkpoint")
    usual = glm_image.GRIDS
    glm_image.GRIDS = (SMALL, LARGE)
    try:
        exportable, path = export(folder / "checkpoint", folder, positions=64)
        yield folder / "checkpoint", exportable, path
    finally:
        glm_image.GRIDS = usual


def logits_of(model, tokens):
    """With the places that its own code gives a prompt, up to the first token that begins a picture, and what is generated."""
    begins = np.flatnonzero(tokens == BEGIN)
    prompt = torch.as_tensor(tokens[: begins[0] + 1] if len(begins) else tokens)[None]
    grids, count = (torch.tensor(GRIDS), torch.tensor([2])) if len(begins) else (None, None)
    places, _ = model.model.get_rope_index(prompt, image_grid_thw=grids, images_per_sample=count)
    if len(begins):
        generated = model.model._cached_decode_position_ids[0][:, None, : len(tokens) - prompt.shape[1]]
        places = torch.cat([places, generated], dim=-1)
    assert places.shape == (3, 1, len(tokens))
    with torch.no_grad():
        ids = torch.as_tensor(tokens)[None]
        return model(input_ids=ids, position_ids=places, use_cache=False).logits[0].numpy()


def wrong_pictures(**changes):
    def wrong(description, weights):
        pictures = dataclasses.replace(description.rotary.pictures, **changes)
        return dataclasses.replace(
            description, rotary=dataclasses.replace(description.rotary, pictures=pictures)
        ), weights

    return wrong


def test_windows_are_scored_as_by_transformers(model, exported):
    folder, _, path = exported
    difference, spread = difference_of_windows(path, lambda t: logits_of(model, t), VOCABULARY, slice(0, HEAD))
    print(f"\nGLM-Image {difference:.1e}   (standard deviation of the logits {spread:.1f})")
    assert difference <= TOLERANCE
    assert 1 <= spread <= 20
    tokens = np.random.default_rng(3).integers(0, BEGIN, LENGTH)
    tokens[4] = BEGIN
    wrong = [
        epsilon,
        wrong_pictures(begin=0),
        wrong_pictures(grids=(LARGE, SMALL)),
        wrong_pictures(grids=(SMALL, (6, 5))),
        wrong_pictures(sections=(2, 1, 3)),
        without("attention_output_norm.weight"),
        without("mlp_output_norm.weight"),
        without("query.bias"),
    ]
    with open_checkpoint(folder) as checkpoint:
        exportable = find_family(checkpoint).load(checkpoint, 64)
        assert_they_show(exportable, wrong, tokens, logits_of(model, tokens), slice(0, HEAD), TOLERANCE)


def test_a_whole_generation_is_that_of_transformers(model, exported):
    """Greedily, one token at a time, with transformers' own cache and places; here with windows of one."""
    _, _, path = exported
    prompt = np.array([50, 51, 52, 7, BEGIN])
    length = SMALL[0] * SMALL[1] + LARGE[0] * LARGE[1] + 1
    expected = model.generate(
        input_ids=torch.as_tensor(prompt)[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        image_grid_thw=torch.tensor(GRIDS),
        images_per_sample=torch.tensor([2]),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0].numpy()
    run, tokens = Windows(path, 1), prompt
    logits = run(prompt[None], [0])
    for _ in range(length):
        tokens = np.append(tokens, logits[0, -1, :HEAD].argmax())
        logits = run(tokens[None, -1:], [len(tokens) - 1])
    np.testing.assert_array_equal(tokens, expected[: len(tokens)])
    assert len(np.unique(tokens)) > 10


def test_what_decoding_needs(model, exported):
    folder, exportable, _ = exported
    assert exportable.decoding.length == 37
    assert [(span.first, span.count, span.times) for span in exportable.decoding.layout.spans] == [
        (0, BEGIN, 6),
        (0, BEGIN, 30),
        (END, 1, 1),
    ]
    with open_checkpoint(folder) as checkpoint:
        short = find_family(checkpoint).load(checkpoint, 37)
    assert (short.decoding.length, short.decoding.layout) == (0, None)
