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
)
