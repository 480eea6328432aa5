"""What is written into a model repository, and what is left alone."""

import shutil
from pathlib import Path

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.serving.triton.repository import write_model
from coupled_sampling.serving.triton.settings import PARAMETERS, TritonSettings
from coupled_sampling.serving.triton.tensors import INPUTS, OUTPUTS
from standins.codebook_clips import write_clip_bundle
from standins.pbtxt import read_pbtxt
from standins.text_bundles import write_text_bundle
from standins.tokenizers_of_text import byte_level

DOCUMENT = Path(__file__).parents[3] / "docs" / "triton.md"


@pytest.fixture(scope="module")
def fashion():
    return open_bundle("fashion")


def config(folder):
    return read_pbtxt((folder / "config.pbtxt").read_text())


def named(fields):
    return {one["name"][0]: one for one in fields}


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_has_what_triton_needs(fashion, tmp_path):
    folder = write_model(fashion, tmp_path / "models", TritonSettings(rows=3))
    fields = config(folder)
    assert (fields["name"], fields["backend"], fields["max_batch_size"]) == (["fashion"], ["python"], [0])
    assert fields["model_transaction_policy"] == [{"decoupled": ["true"]}]
    assert fields["instance_group"] == [{"count": [1], "kind": ["KIND_CPU"]}]
    assert all(one["optional"] == ["true"] for one in fields["input"])
    assert named(fields["input"])["temperature"]["data_type"] == ["TYPE_FP64"]
    assert named(fields["output"])["tokens"]["dims"] == [-1]
    assert open_bundle(folder / "1" / "bundle").manifest == fashion.manifest
    compile((folder / "1" / "model.py").read_text(), "model.py", "exec")


def test_parameters_are_settings_again(fashion, tmp_path):
    settings = TritonSettings(rows=3, most_waiting=0, drain=1.5, threads=1, defaults={"window": "auto", "top_p": 0.9})
    parameters = {
        one["key"][0]: one["value"][0]["string_value"][0]
        for one in config(write_model(fashion, tmp_path, settings))["parameters"]
    }
    assert parameters.pop("bundle") == "bundle"
    assert TritonSettings.read(parameters) == settings


def test_one_engine_for_each_gpu(fashion, tmp_path):
    fields = config(write_model(fashion, tmp_path, TritonSettings(gpus=(0, 2))))
    assert fields["instance_group"] == [{"count": [1], "kind": ["KIND_GPU"], "gpus": [0, 2]}]
    assert {one["key"][0]: one["value"][0]["string_value"][0] for one in fields["parameters"]}["backend"] == "cuda"


def test_tensors_are_those_that_the_model_can_have(fashion, tmp_path):
    words = open_bundle(write_text_bundle(tmp_path, byte_level()))
    pictures, texts = (
        config(write_model(one, tmp_path / "models", name=name)) for one, name in ((fashion, "a"), (words, "b"))
    )
    only = {"prompt_tokens", "prompt", "seed", "stream"}
    assert named(pictures["input"]).keys() - named(texts["input"]).keys() == {"guidance", "guidance_interval", "pixels"}
    assert named(texts["input"]).keys() - named(pictures["input"]).keys() == {"stop", "json_schema", "regex"}
    assert only < named(texts["input"]).keys() & named(pictures["input"]).keys()
    assert "text" in named(texts["output"])
    assert "text" not in named(pictures["output"])


def test_pixels_of_clips_have_frames(fashion, tmp_path):
    clips = open_bundle(write_clip_bundle(tmp_path / "clips"))
    fields = [config(write_model(one, tmp_path / "models", name=one.manifest.name)) for one in (fashion, clips)]
    for one, sizes in zip(fields, (3, 4), strict=True):
        assert [output["dims"] for output in one["output"] if output["name"] == ["pixels"]] == [[-1] * sizes]
        assert named(one["input"])["pixels"]["dims"] == [1]


def test_a_link_names_the_bundle_whatever_its_path(fashion, tmp_path):
    source = tmp_path / 'a "quoted" \\ b\u00fcndel\n'
    shutil.copytree(fashion.folder, source)
    folder = write_model(open_bundle(source), tmp_path / "models", link=True)
    assert {one["key"][0]: one["value"][0]["string_value"][0] for one in config(folder)["parameters"]}["bundle"] == str(
        source
    )
    assert not (folder / "1" / "bundle").exists()


def test_other_models_are_left_alone_and_an_existing_one_is_refused(fashion, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    folder = write_model(fashion, tmp_path)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="exists; choose another --name, or --replace"):
        write_model(fashion, tmp_path)
    assert everything(tmp_path) == before
    assert (tmp_path / "other" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fashion", "other"]
    assert folder == tmp_path / "fashion"


def test_what_was_written_here_is_replaced(fashion, tmp_path):
    folder = write_model(fashion, tmp_path, link=True)
    (folder / "1" / "__pycache__").mkdir()
    (folder / "1" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"what Python left")
    write_model(fashion, tmp_path, TritonSettings(rows=5), replace=True)
    assert any(one["value"][0]["string_value"] == ["5"] for one in config(folder)["parameters"])
    assert (folder / "1" / "bundle").is_dir()
    write_model(fashion, tmp_path, link=True, replace=True)
    assert sorted(everything(folder)) == ["1/model.py", "config.pbtxt"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("config.pbtxt", "config.pbtxt in it was edited"),
        ("1/model.py", "1/model.py in it was edited"),
        ("1/bundle/mine.txt", "1/bundle/mine.txt in it is not of this command"),
        ("2/model.py", "2 in it is not of this command"),
        ("labels.txt", "labels.txt in it is not of this command"),
    ],
)
def test_what_was_not_written_here_is_never_replaced(fashion, tmp_path, path, said):
    folder = write_model(fashion, tmp_path)
    (folder / path).parent.mkdir(exist_ok=True)
    with (folder / path).open("a") as file:
        file.write("# mine\n")
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=said):
        write_model(fashion, tmp_path, replace=True)
    assert everything(tmp_path) == before


def test_somebody_elses_model_is_not_replaced(fashion, tmp_path):
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / "config.pbtxt").write_text('name: "fashion"')
    with pytest.raises(OutputError, match="did not write it"):
        write_model(fashion, tmp_path, replace=True)


@pytest.mark.parametrize("known", [False, True])
def test_a_write_that_fails_leaves_nothing(fashion, tmp_path, monkeypatch, known):
    repository = tmp_path / "models"
    if known:
        write_model(fashion, repository)
    before = everything(tmp_path)
    copied = []

    def full(source, to):
        if copied:
            raise OSError(28, "No space left on device")
        copied.append(to.write_bytes(source.read_bytes()))

    monkeypatch.setattr("coupled_sampling.serving.triton.repository.shutil.copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        write_model(fashion, repository, replace=True)
    assert copied
    assert everything(tmp_path) == before
    assert repository.exists() == known


def test_the_bundle_may_not_be_in_what_is_replaced(fashion, tmp_path):
    folder = write_model(fashion, tmp_path)
    with pytest.raises(OutputError, match="the bundle is in it"):
        write_model(open_bundle(folder / "1" / "bundle"), tmp_path, replace=True)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "n\u00e4me", "a b"])
def test_names_are_those_of_a_folder(fashion, tmp_path, name):
    with pytest.raises(InvalidArgument, match="name is"):
        write_model(fashion, tmp_path, name=name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows": "0"}, "rows is 0"),
        ({"rows": "many"}, "rows of config.pbtxt is 'many', expected a number"),
        ({"row": "1"}, "the parameter 'row'"),
        ({"backend": "cpus"}, "backend is 'cpus'"),
        ({"drain_seconds": "-1"}, "drain_seconds is -1"),
        ({"drain_seconds": "nan"}, "drain_seconds is nan"),
    ],
)
def test_parameters_that_cannot_work_are_refused(given, said):
    with pytest.raises(InvalidArgument, match=said):
        TritonSettings.read(given)


def test_gpus_need_a_back_end_that_has_them():
    with pytest.raises(InvalidArgument, match="'cpu' runs on no GPU"):
        TritonSettings("cpu", gpus=(0,))
    with pytest.raises(InvalidArgument, match="each once"):
        TritonSettings(gpus=(1, 1))
    assert TritonSettings("tensorrt").gpus == (0,)


def test_plugins_are_refused():
    with pytest.raises(InvalidArgument, match=r"backend is 'ort', expected one of cpu, .*: Triton places no plugins"):
        TritonSettings("ort")


def test_settings_that_the_model_cannot_have_are_refused_before_anything_is_written(fashion, tmp_path):
    with pytest.raises(InvalidArgument, match="method is 'fast'"):
        write_model(fashion, tmp_path / "models", TritonSettings(defaults={"method": "fast"}))
    assert not (tmp_path / "models").exists()


def test_every_tensor_and_parameter_is_documented():
    text = DOCUMENT.read_text()
    missing = [
        name for name in (*PARAMETERS, *(tensor.name for tensor in (*INPUTS, *OUTPUTS))) if f"`{name}`" not in text
    ]
    assert not missing
