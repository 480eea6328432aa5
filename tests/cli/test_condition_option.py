"""``--condition``, and what is said where a model needs a condition and can be given none."""

import json

import numpy as np
import pytest

from coupled_sampling import Request, generate, open_bundle
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles import Prompt
from coupled_sampling.decoding import Decoder
from coupled_sampling.errors import InvalidArgument
from standins.conditioned import COSMOS, LENGTH, some_vectors
from standins.toy_bundles import write_toy_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    prompts = {"begin": Prompt((22,), (), "Begin")}
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "toy", COSMOS, max_window=LENGTH, prompts=prompts)


@pytest.fixture
def vectors(tmp_path):
    np.save(tmp_path / "vectors.npy", some_vectors(3))
    return tmp_path / "vectors.npy"


def test_a_file_of_vectors_is_the_condition_of_every_sequence(folder, vectors, command):
    code, text, errors = command(
        "generate", folder, "--condition", vectors, "--count", 2, "--method", "scd-match", "--window", 4, "--json"
    )
    assert (code, errors) == (0, "")
    decoder, made = Decoder(OrtProvider.open(folder, batch_size=2, threads=1), method="ar"), {}
    for sequence in range(2):
        decoder.add(Request([22], length=6, sequence=sequence, condition=some_vectors(3)))
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            made.setdefault(commit.handle, []).extend(commit.tokens.tolist())
    assert json.loads(text)["tokens"] == [made[0], made[1]]


def test_a_condition_that_does_not_fit_is_refused_by_name(folder, vectors, tmp_path, command):
    def said(*arguments):
        code, text, errors = command("generate", *arguments)
        assert (code, text) == (2, "")
        return errors

    assert "condition is missing: the model toy looks at a floating array (n, 10) with up to 7 vectors n" in said(
        folder
    )
    assert "the model fashion takes none" in said("fashion", "--condition", vectors)
    np.save(tmp_path / "wide.npy", np.zeros((3, 11)))
    assert "request has a condition of shape (3, 11)" in said(folder, "--condition", tmp_path / "wide.npy")
    (tmp_path / "empty.npy").touch()
    assert "condition: " in said(folder, "--condition", tmp_path / "empty.npy")
    assert "none.npy is missing, expected a floating array (n, 10)" in said(
        folder, "--condition", tmp_path / "none.npy"
    )
    (tmp_path / "text.npy").write_text("a cat on a mat")
    assert "is no array of numpy's" in said(folder, "--condition", tmp_path / "text.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    assert "holds several arrays" in said(folder, "--condition", tmp_path / "two.npz")
    assert "none.npy" in said(folder, "--condition", tmp_path / "none.npy")


@pytest.mark.parametrize("name", ["compare", "verify"])
def test_commands_that_take_none_say_which_does(folder, command, name):
    code, _, errors = command(name, folder)
    assert code == 2
    assert "condition is missing" in errors
    assert "coupled-sampling generate --condition" in errors


def test_inspect_says_what_it_takes(folder, command):
    lines = command("inspect", folder)[1].splitlines()
    assert any(
        line.split() == ["condition:", "up", "to", "7", "vectors", "of", "10,", "condition.onnx"] for line in lines
    )
    assert any(line.split() == ["condition:", "none"] for line in command("inspect", "fashion")[1].splitlines())


def test_a_server_refuses_the_model(folder, command):
    pytest.importorskip("fastapi")
    from coupled_sampling.serving import Lanes

    code, _, errors = command("serve", folder, "--port", 0)
    assert code == 2
    assert (
        "looks at vectors that come with a request (up to 7 of 10 numbers), which a server cannot be given so far"
        in errors
    )
    with pytest.raises(InvalidArgument, match="use `coupled-sampling generate --condition`"):
        Lanes(lambda: open_bundle(folder))


def test_generate_of_the_library_says_that_it_is_missing(folder):
    with pytest.raises(InvalidArgument, match="request has no condition"):
        generate(OrtProvider.open(folder, threads=1), [[22]], length=3)
