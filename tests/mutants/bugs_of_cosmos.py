"""Bugs of Cosmos, of prompts that are frames, and of how PyTorch's archives are read."""

from planting import Bug

__all__ = ["BUGS"]

FAMILY, TEXT = ("test_cosmos",), ("test_cosmos_text",)
FRAMES = ("test_prompt_frames",)
ARCHIVES = ("test_torch_archives",)

BUGS = (
    Bug(
        "columns-stretched-by-their-own-number",
        "cosmos:_description",
        "replace(grid, trained=(first, space, space))",
        "replace(grid, trained=(first, space, _))",
        "12B's columns turn as if 64 had been their number in training.",
        FAMILY,
    ),
    Bug(
        "heads-as-wide-as-the-model",
        "cosmos:_description",
        "sizes.head_size",
        "sizes.width // sizes.heads",
        "12B's heads are taken to be 160 wide.",
        FAMILY,
    ),
    Bug(
        "all-frames-are-generated",
        "Decoding.generated_grid",
        "self.grid.frames - self.prompt_frames",
        "self.grid.frames",
        "A bundle generates the prompt's frames again.",
        FAMILY,
    ),
    Bug(
        "frames-of-a-prompt-not-copied",
        "settings:_suited",
        "manifest.prompt_frames > 0",
        "False",
        "The first generated frame is guessed without looking at the one before.",
        FRAMES,
    ),
    Bug(
        "prompts-with-frames-too-many",
        "PromptFrames.refusal",
        "frames.sum() == self.tokens",
        "frames.sum() >= self.tokens",
        "A prompt of one token more is taken, and every token turns as the one before it should.",
        FRAMES,
    ),
    Bug(
        "a-video-begins-anyhow",
        "PromptFrames.refusal",
        "self._begins(given) and (not self.tokens or (whole and nothing_else))",
        "not self.tokens or (whole and nothing_else)",
        "Another token takes the place of the one that begins a video.",
        FRAMES,
    ),
    Bug(
        "what-begins-a-video-comes-late",
        "PromptFrames.refusal",
        "not self.begin or len(given) == len(self.begin) + self.tokens",
        "True",
        "A video may begin twice, and every token turns as the one after it should.",
        FRAMES,
    ),
    Bug(
        "what-begins-a-video-has-a-position",
        "cosmos:_description",
        "LayerPositions(frames, rows, columns, prefix=before)",
        "LayerPositions(frames, rows, columns)",
        "Layers add to each token the position of the one after it.",
        TEXT,
    ),
    Bug(
        "pixels-of-generated-tokens-alone",
        "Manifest.pixel_tokens",
        "self.length + (0 if frames is None else frames.tokens)",
        "self.length",
        "Clips that go on from a prompt have no pixels.",
        FRAMES,
    ),
    Bug(
        "strides-not-looked-at",
        "torch_archive:_Archive.read",
        "np.lib.stride_tricks.as_strided(run.view(dtype), tensor.shape, strides)",
        "np.lib.stride_tricks.as_strided(run.view(dtype), tensor.shape)",
        "A transposed tensor is read in the order of its storage.",
        ARCHIVES,
    ),
    Bug(
        "any-function-is-a-name",
        "torch_pickle:_Machine._named",
        "not known and module.partition('.')[0] != _INERT",
        "False",
        "Names that are no part of a checkpoint are not refused by name.",
        ARCHIVES,
    ),
    Bug(
        "elements-beyond-their-storage",
        "torch_archive:_Archive._check",
        "elements > storage.elements",
        "False",
        "An expanded tensor may ask for any amount of memory.",
        ARCHIVES,
    ),
    Bug(
        "order-of-bytes-forgotten",
        "torch_archive:_Archive.read",
        "self._order != sys.byteorder",
        "False",
        "Archives of big-endian machines are read as noise.",
        ARCHIVES,
    ),
)
