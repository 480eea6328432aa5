"""Engines in their folders: of several processes that build at the same time."""

import contextlib
import shutil

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.backends.trt import EngineStore, store
from coupled_sampling.backends.trt.store import Fingerprint
from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.errors import OutputError

OURS = Fingerprint({}, "tensorrt", "11.4.0", "a GPU", {"precision": "float32"})


@pytest.mark.parametrize("same", [True, False])
def test_another_process_may_save_the_engine_meanwhile(tmp_path, monkeypatch, same):
    """Its engine is as good, if it is the same; a folder that is anything else is left alone."""

    @contextlib.contextmanager
    def raced(place, replacing):
        with whole_folder(place, replacing) as folder:
            yield folder
            with whole_folder(place) as theirs:
                for path in folder.iterdir() if same else ():
                    shutil.copyfile(path, theirs / path.name)

    engines = EngineStore(open_bundle("fashion"), tmp_path / "engines")
    monkeypatch.setattr(store, "whole_folder", raced)
    if same:
        assert engines.load(OURS)[0] is None
        engines.save(OURS, b"engine")
        assert engines.load(OURS) == (b"engine", "")
    else:
        with pytest.raises(OutputError, match="somebody else made it meanwhile"):
            engines.save(OURS, b"engine")


def test_a_stale_engine_is_replaced(tmp_path):
    engines = EngineStore(open_bundle("fashion"), tmp_path / "engines")
    engines.save(OURS, b"old")
    engines.save(OURS, b"new")
    assert engines.load(OURS) == (b"new", "")
    assert [path.name for path in engines.folder.iterdir()] == [engines.place(OURS).name]
