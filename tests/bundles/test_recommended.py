"""An unconditional prompt that is made of the prompt itself: said by a manifest, and followed wherever a bundle is decoded."""

import json
from dataclasses import replace

import pytest

from coupled_sampling import Decoder, Guidance, Request, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.bundles import Bundle, PaddedPrompt, write_manifest
from coupled_sampling.bundles.manifest_file import read_manifest
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.serving.jobs import Job

FASHION = open_bundle("fashion")
PAD = 266


def with_prompt(unconditional):
    return Bundle(FASHION.folder, replace(FASHION.manifest, unconditional_prompt=unconditional))


@pytest.mark.parametrize(
    ("rule", "prompt", "made"),
    [
        (PaddedPrompt(0), [7, 5, 6, 9], (7, 0, 0, 9)),
        (PaddedPrompt(0), [7, 9], (7, 9)),
        (PaddedPrompt(0), [7], (7,)),
        (PaddedPrompt(0, keep_first=2, keep_last=0), [7, 5, 6, 9], (7, 5, 0, 0)),
        (PaddedPrompt(0, keep_first=0, keep_last=0), [7, 5], (0, 0)),
        (PaddedPrompt(0, keep_first=2, keep_last=2), [7, 5, 6], (7, 5, 6)),
    ],
)
def test_what_is_padded(rule, prompt, made):
    assert rule(prompt) == made


def test_a_manifest_says_it_and_older_ones_read_as_before(tmp_path):
    padded = replace(FASHION.manifest, unconditional_prompt=PaddedPrompt(PAD, keep_last=2))
    write_manifest(tmp_path, padded)
    document = json.loads((tmp_path / "manifest.json").read_text())
    assert document["unconditional_prompt"] == {"pad": PAD, "keep_first": 1, "keep_last": 2}
    assert read_manifest(tmp_path) == padded
    document["unconditional_prompt"] = {"pad": PAD}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert read_manifest(tmp_path).unconditional_prompt == PaddedPrompt(PAD)
    for written, read in (([PAD], (PAD,)), (None, None)):
        document["unconditional_prompt"] = written
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        assert read_manifest(tmp_path).unconditional_prompt == read


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"pad": 267}, r"unconditional_prompt\.pad is 267, expected a token in \[0, 267\)"),
        ({"pad": -1}, r"unconditional_prompt\.pad is -1"),
        ({"pad": 0, "keep_first": -1}, r"keep_first is -1"),
        ({"keep_first": 1}, r"unconditional_prompt\.pad is missing"),
        ({"pad": 0, "keep": 1}, r"unconditional_prompt\.keep is unknown"),
        ("start", r"unconditional_prompt is 'start'"),
    ],
)
def test_what_is_no_prompt_is_refused(written, message, tmp_path):
    write_manifest(tmp_path, FASHION.manifest)
    document = json.loads((tmp_path / "manifest.json").read_text()) | {"unconditional_prompt": written}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        read_manifest(tmp_path)


def decoded(bundle, requests, **opened):
    with open_model(bundle, method="scd-match", rows=2, guidance=3.0, **opened) as model:
        decoder = Decoder(model, window=8, drafting="repeat")
        handles = [decoder.add(request) for request in requests]
        found = {handle: [] for handle in handles}
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                assert commit.error is None
                found[commit.handle] += commit.tokens.tolist()
    return [found[handle] for handle in handles]


@pytest.mark.parametrize("opened", [{"step": "host"}, {"step": "graph", "warped": True}], ids=["host", "graph"])
def test_every_request_has_its_own_unconditional_prompt(opened):
    prompts = [[258, 4, 5, 6], [261, 7]]
    asked = [Request(prompt, 12, seed=3, sequence=i) for i, prompt in enumerate(prompts)]
    own = [Guidance(unconditional=prompt) for prompt in ([258, PAD, PAD, 6], [261, 7])]
    said = [replace(request, guidance=guidance) for request, guidance in zip(asked, own, strict=True)]
    padded = decoded(with_prompt(PaddedPrompt(PAD)), asked, **opened)
    assert padded == decoded(FASHION, said, **opened)
    assert padded[0] != decoded(FASHION, asked, **opened)[0]


def test_it_needs_no_positions_but_the_prompts_own():
    long = replace(FASHION.manifest, length=190, pixel_graph=None, grid=None, prompts={}, unconditional_prompt=None)
    fixed, padded = (
        Bundle(FASHION.folder, replace(long, unconditional_prompt=said)).settings(guidance=2.0)
        for said in ((PAD,) * 5, PaddedPrompt(PAD))
    )
    assert (fixed.length_after(3), padded.length_after(3)) == (190, 190)
    assert (fixed.length_after(7), padded.length_after(7)) == (186, 190)


def test_servers_and_the_command_line_follow_it(tmp_path):
    bundle = with_prompt(PaddedPrompt(PAD))
    job = Job((258, 4, 5), seed=1, settings={"guidance": 2.0})
    request = job.request(bundle.settings(**job.settings), bundle, None)
    assert request.guidance == Guidance(2.0)  # the unconditional prompt is the model's
    with pytest.raises(InvalidArgument, match="no unconditional prompt"):
        with_prompt(None).settings(guidance=2.0)
