"""Bugs of decoders of videos: time that runs the wrong way or begins with nothing, frames doubled in the wrong place, wavelets."""

from planting import Bug

__all__ = ["BUGS"]

VIDEOS = ("test_video_decoder",)
EMU3 = ("test_frames_of_emu3",)
ENCODERS = ("test_video_encoder",)

BUGS = (
    Bug(
        "nothing-before-the-first-frame",
        "video_pixel_graph:_Writer.__init__",
        "super().__init__(reader, grid, 1, description.epsilon, stored, tensors, first_again=True)",
        "super().__init__(reader, grid, 1, description.epsilon, stored, tensors)",
        "Before the first frame stand zeros, as for Emu3, and not the frame itself.",
        VIDEOS,
    ),
    Bug(
        "the-last-copy-goes",
        "video_pixel_graph:_Writer.doubled",
        "(number + 1) // 2",
        "number // 2",
        "Of doubled frames the copy of the last one is dropped, so that every frame comes one too late.",
        VIDEOS,
    ),
    Bug(
        "attention-to-what-comes",
        "VideoParts.attention_in_time",
        "np.triu(np.full((self.frames, self.frames), -np.inf, np.float32), 1)",
        "np.triu(np.full((self.frames, self.frames), -np.inf, np.float32), 2)",
        "A frame sees the one after it, and changes when that is decided.",
        VIDEOS,
    ),
    Bug(
        "wavelets-of-time-in-columns",
        "video_pixel_graph:_Writer.inverse_haar",
        "[0, 1, 4, 5, 2, 6, 3]",
        "[0, 3, 4, 5, 2, 6, 1]",
        "What changes from frame to frame is drawn from column to column.",
        VIDEOS,
    ),
    Bug(
        "time-runs-backwards",
        "PictureParts.convolution",
        "kernel.swapaxes(1, 2)",
        "kernel[:, :, ::-1].swapaxes(1, 2)",
        "The tap of the frame itself meets the one two before.",
        EMU3 + VIDEOS,
    ),
    Bug(
        "frames-play-twice",
        "pixel_graph:_Writer.latent",
        "number // 2",
        "number % self.frames",
        "Emu3's clip plays twice where each of its frames should stand twice.",
        EMU3,
    ),
    Bug(
        "digits-halfway-are-lost",
        "video_token_graph:_Writer.tokens",
        "np.where(levels % 2 == 0, 0.5, 0)",
        "np.zeros(len(levels))",
        "Digits of an even number of values are counted from the wrong middle, and one of them never comes out.",
        ENCODERS,
    ),
)
