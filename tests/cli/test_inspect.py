"""``inspect``: what a bundle is, for people and as JSON."""

import json


def test_inspect_says_what_the_model_is(command):
    code, text, _ = command("inspect", "fashion")
    assert code == 0
    for word in ("267", "14 x 14", "ankle-boot", "Apache-2.0", "Fashion-MNIST", "196"):
        assert word in text
    code, text, _ = command("inspect", "--json")
    assert code == 0
    assert json.loads(text)["vocab_size"] == 267
