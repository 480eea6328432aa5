"""Prompts that are the first frames of a clip: what a manifest says of them, what is refused, and what the pixel graph takes."""

from dataclasses import replace

import pytest

from coupled_sampling.bundles import Grid, PixelGraph, Prompt, open_bundle
from coupled_sampling.bundles.clips import decided_frames
from coupled_sampling.bundles.settings import decoding_settings
from coupled_sampling.drafting import Copy, Repeat
from coupled_sampling.errors import BundleError, InvalidArgument

FASHION = open_bundle("fashion").manifest
FRAME = list(range(28))


def clip(**changes):
    """A manifest of clips of 3 frames of 2 by 14 tokens, the first of them given."""
    pixels = replace(FASHION.pixel_graph, frames=17)
    plain = {"grid": Grid(2, 14, 2), "prompt_frames": 1, "length": 56, "pixel_graph": pixels, "prompts": {}}
    return replace(FASHION, **plain | {"unconditional_prompt": None, "corrections": None, "step_graphs": ()} | changes)


def test_the_pixel_graph_takes_the_prompts_frames_too():
    manifest = clip()
    assert manifest.picture_tokens([260, *FRAME], [1] * 56).tolist() == FRAME + [1] * 56
    assert FASHION.picture_tokens([260], [1, 2]).tolist() == [1, 2]
    assert manifest.frame_tokens == 28
    assert (manifest.pixel_tokens, FASHION.pixel_tokens) == (84, 196)
    assert clip(grid=Grid(2, 14, 1), length=28).frame_tokens == 28  # to the prompt's


def test_the_prompts_frames_are_decided_first():
    assert [clip().frames_of(tokens) for tokens in (0, 27, 28, 55, 56)] == [1, 1, 9, 9, 17]


@pytest.mark.parametrize(
    ("made", "expected"),
    [((12, 12), range(13)), ((33, 5), (0, 1, 9, 17, 25, 33)), ((24, 12), range(0, 25, 2)), ((1, 1), (0, 1)), ((4, 1), (0, 4))],
)  # fmt: skip
def test_frames_of_pixels_that_frames_of_tokens_decide(made, expected):
    pixel_frames, frames = made
    assert [decided_frames(pixel_frames, frames, whole) for whole in range(frames + 1)] == list(expected)


def test_where_both_readings_come_out_even_less_is_promised():
    assert decided_frames(49, 7, 3) == min(3 * 7, 1 + 2 * 8)


def test_a_prompt_has_to_end_with_its_frames():
    for prompt in (FRAME, [260, *FRAME], [266, 260, *FRAME]):
        assert clip().frames_of_prompt.refusal(prompt) is None
    for prompt in ([], FRAME[1:], [3, *FRAME], [*FRAME[1:], 260], [*FRAME, 260], [*FRAME[:9], 260, *FRAME[9:]], [260]):
        assert "28 tokens from 0 to 255" in clip().frames_of_prompt.refusal(prompt)
    with pytest.raises(BundleError, match=r"prompts\['a'\]\.tokens is '2 tokens', expected 28 tokens"):
        clip(prompts={"a": Prompt((260, 3), (), "A")})
    clip(prompts={"a": Prompt((260, *FRAME), (), "A")})


def test_what_is_wrong_with_a_prompt_is_said():
    frames, begun = clip().frames_of_prompt, clip(prompt_begin=(260,)).frames_of_prompt
    for found, prompt in (
        (frames.found, FRAME[1:]),
        (begun.found, [260, *FRAME[1:]]),
        (begun.found, [260, *FRAME, 3]),
    ):
        assert found(prompt) == f"{len(prompt)} tokens"
    assert frames.found([*FRAME[:9], 256, *FRAME[10:]]) == "28 tokens, of which token 9 is 256"
    assert frames.found([260, 3, *FRAME]) == "30 tokens, of which token 1 is 3"
    assert begun.found([260, *FRAME[:9], -1, *FRAME[10:]]) == "29 tokens, of which token 10 is -1"
    assert begun.found([261, *FRAME]) == "29 tokens, of which token 0 is 261"
    settings = decoding_settings(clip(), {"guidance": 1.0})
    with pytest.raises(InvalidArgument, match="prompt has 28 tokens, of which token 27 is 256, expected 28 tokens"):
        settings.request([*FRAME[:27], 256])
    with pytest.raises(InvalidArgument, match=r"prompt is .*, expected integer tokens"):
        settings.request([10**30] * 28)


def test_frames_that_no_prompt_has_room_for_are_refused():
    clip(length=112, grid=Grid(2, 14, 4))
    with pytest.raises(BundleError, match="prompt_frames is 4, expected frames that make prompts of at most 85 tokens"):
        clip(length=112, grid=Grid(2, 14, 4), prompt_frames=4)


def test_what_a_prompt_begins_with_is_all_that_comes_before_its_frames():
    frames = clip(prompt_begin=(260,)).frames_of_prompt
    assert frames.refusal([260, *FRAME]) is None
    for prompt in (
        [],
        FRAME,
        [261, *FRAME],
        [260, 260, *FRAME],
        [261, 260, *FRAME],
        [260, *FRAME[1:]],
        [260, *FRAME, 1],
        [260],
    ):
        assert frames.refusal(prompt) == "260 first, and then 28 tokens from 0 to 255, the frames to go on from"
    alone = replace(FASHION, prompts={}, unconditional_prompt=None, corrections=None, prompt_begin=(260, 259))
    assert (alone.frames_of_prompt.refusal([260, 259, 3]), alone.frames_of_prompt.refusal([260, 259])) == (None, None)
    assert alone.frames_of_prompt.refusal([259, 260, 3]) == alone.frames_of_prompt.refusal([260]) == "260, 259 first"
    assert (alone.pixel_tokens, alone.picture_tokens([260, 259], [1, 2]).tolist()) == (196, [1, 2])
    with pytest.raises(InvalidArgument, match="prompt has 1 tokens, expected 260, 259 first"):
        decoding_settings(alone, {}).request([260])
    with pytest.raises(BundleError, match=r"prompts\['a'\]\.tokens is '1 tokens', expected 260, 259 first"):
        replace(alone, prompts={"a": Prompt((260,), (), "A")})
    for token in (-1, 3, FASHION.vocab_size):
        with pytest.raises(BundleError, match=r"prompt_begin is .*, expected tokens in .* that are not generated"):
            clip(prompt_begin=(260, token))


def test_frames_of_prompts_need_a_clip():
    for changes in (
        {"grid": None, "length": 196, "pixel_graph": None},
        {"grid": Grid(14, 14), "length": 196, "pixel_graph": None},
        {"prompt_frames": -1},
        {"pixel_graph": PixelGraph(FASHION.pixel_graph.file, 28, 28, 1, frames=2)},
    ):
        with pytest.raises(BundleError, match=r"prompt_frames|pixel_graph\.frames"):
            clip(**changes)


def test_drafts_are_copied_from_the_prompts_frames_where_there_are_some():
    manifest = clip(defaults=replace(FASHION.defaults, guidance=1.0))
    settings = decoding_settings(manifest, {"drafting": "copy:28"})
    assert settings.drafting == Copy(28, FASHION.fill_token, (0, 256))
    assert decoding_settings(manifest, {"drafting": "repeat"}).drafting == Repeat(FASHION.fill_token, (0, 256))
    assert decoding_settings(FASHION, {"drafting": "copy:28"}).drafting == Copy(28, FASHION.fill_token)
    with pytest.raises(InvalidArgument, match="prompt has 1 tokens, expected 28 tokens from 0 to 255"):
        settings.request([260])
    assert settings.request([260, *FRAME]).length == 56
