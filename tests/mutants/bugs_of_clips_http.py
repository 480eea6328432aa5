"""Bugs of clips over HTTP: frames that come too early, too late or as another one, and files that play them wrong."""

from planting import Bug

__all__ = ["BUGS"]

CLIPS = ("test_clips_http",)

BUGS = (
    Bug(
        "the-frame-after-the-last-final-one",
        "ClipPainter.partials",
        "picture_file(pixels[n - 1], self._frame_format)",
        "picture_file(pixels[min(n, len(pixels) - 1)], self._frame_format)",
        "A stream sends the frame that is only begun, made of arbitrary tokens.",
        CLIPS,
    ),
    Bug(
        "frames-counted-in-tokens-of-a-picture",
        "ClipPainter.ready",
        "self._manifest.frames_of(tokens)",
        "tokens * self.count // self._manifest.length",
        "Where the first frame of tokens makes fewer frames of pixels than others, frames are sent that may still change.",
        CLIPS,
    ),
    Bug(
        "every-frame-lasts-as-long",
        "animations:_durations",
        "[end - begin for begin, end in pairwise(ends)]",
        "[int(1000 // fps // tick * tick)] * count",
        "Rounding errors add up: a GIF of 30 frames in a second takes less time than its frames.",
        CLIPS,
    ),
    Bug(
        "clips-play-once",
        "encode_clip",
        "first.save(written, kind, save_all=True, append_images=others, duration=durations, loop=0, **_SETTINGS[kind])",
        "first.save(written, kind, save_all=True, append_images=others, duration=durations, loop=1, **_SETTINGS[kind])",
        "A clip stands still when it was shown once.",
        CLIPS,
    ),
    Bug(
        "one-partial-image-a-pass",
        "_Asking._due",
        "del picture.thresholds[: len(due)]\nreturn due",
        "del picture.thresholds[: len(due)]\nreturn due[-1:]",
        "Where one pass decides several rows or frames, only the last of them is sent.",
        ("test_images", *CLIPS),
    ),
    Bug(
        "first-frames-alike",
        "decided_frames",
        "return min(possible if odd else [*possible, 1 + (whole - 1) * later], default=0)",
        "return whole * -(-pixel_frames // frames)",
        "A decoder whose first frame stands alone is said to have decided frames that it has not.",
        ("test_frames_of_clips",),
    ),
    Bug(
        "a-pixel-graph-is-believed",
        "PixelDecoder.__init__",
        "if not all((name in found and _agree(found[name], promised) for name, promised in wanted.items())):\n"
        "    raise self._broken(f'has the inputs and outputs {found}', str(wanted))",
        "",
        "Frames that the graph does not make are looked for after all the work.",
        ("test_clips",),
    ),
    Bug(
        "a-stop-token-cuts-a-picture-short",
        "_cuts_short",
        "(i < last or span.times > 1)",
        "i < last",
        "A token that ends sequences may stand anywhere in the last part of a picture.",
        ("test_bundle",),
    ),
    Bug(
        "an-interval-outlives-its-guidance",
        "job_settings",
        "if given.get('guidance') == 1 and 'guidance_interval' not in given:\n    kept.pop('guidance_interval', None)",
        "",
        "Who turns off a server's guidance is told of an interval that it never named.",
        ("test_lanes",),
    ),
    Bug(
        "any-interval-guides-something",
        "decoding_settings",
        "read_interval(interval)[0] >= manifest.length",
        "read_interval(interval)[0] > manifest.length",
        "An interval that begins right behind the last token is taken, and nothing is guided.",
        ("test_clips",),
    ),
)
