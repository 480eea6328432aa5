"""Exported decoders beside PyTorch's: ragged windows that go back, in ONNX Runtime, against whole sequences."""

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

LENGTH = 40
"""Tokens of a sequence."""


def one_thread():
    """For a fixture: models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def print_table(furthest, oracle):
    """Print the largest difference and the logits' standard deviation by case."""
    print(f"\n\nlargest difference of logits from {oracle}, float32, random weights")
    for case, (difference, spread) in furthest.items():
        print(f"{case:50} {difference:.1e}   (standard deviation of the logits {spread:.1f})")


class Windows:
    """The graph in ONNX Runtime, with the caches of several rows."""

    def __init__(self, path, rows):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = [value for value in self.session.get_inputs() if value.name.startswith("past_key_values.")]
        self.caches = {value.name: np.zeros((rows, *value.shape[1:]), np.float32) for value in inputs}

    def __call__(self, tokens, start):
        kv_length = np.array([max(start) + tokens.shape[1]], np.int64)
        inputs = {"input_ids": tokens, "start": np.array(start, np.int64), "kv_length": kv_length}
        logits, *present = self.session.run(None, inputs | self.caches)
        self.caches = dict(zip(self.caches, present, strict=True))
        return logits


SCHEDULE = (([0, 0], 9), ([9, 5], 6), ([15, 3], 1), ([4, 1], 8), ([12, 9], 28), ([39, 2], 1), ([7, 3], 7))
"""Starts of two rows and the width: prefill, ragged windows, and going back over tokens that are drawn anew."""


def difference_of_windows(path, scores, vocabulary, generated):
    """Largest difference over `SCHEDULE`, and the spread of the logits."""
    random, run = np.random.default_rng(0), Windows(path, 2)
    tokens, worst, spread = random.integers(0, vocabulary, (2, LENGTH)), 0.0, 0.0
    for start, width in SCHEDULE:
        for row in (0, 1):
            tokens[row, start[row] :] = random.integers(0, vocabulary, LENGTH - start[row])
        found = run(np.stack([tokens[row, start[row] : start[row] + width] for row in (0, 1)]), start)
        assert np.isneginf(np.delete(found, generated, axis=-1)).all()
        for row in (0, 1):
            expected = scores(tokens[row, : start[row] + width])[start[row] :]
            worst = max(worst, float(np.abs(found[row][:, generated] - expected).max()))
            spread = max(spread, float(expected.std()))
    return worst, spread
