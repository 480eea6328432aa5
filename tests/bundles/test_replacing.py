"""Bundles may be replaced and nothing else; what killed runs leave is found, and only that."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.bundles.hidden import REPLACED, hidden_path
from coupled_sampling.bundles.replacing import check_replaceable, leftovers, remove_leftovers
from coupled_sampling.errors import OutputError
from standins import ROOT

posix = pytest.mark.skipif(os.name != "posix", reason="links, locks and SIGKILL")


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(open_bundle("fashion").folder, folder)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_there_is_refused_unless_it_may_be_replaced(bundle, tmp_path):
    assert check_replaceable(tmp_path / "free", force=False) is None
    with pytest.raises(OutputError, match="it exists; choose another name, or --force"):
        check_replaceable(bundle, force=False)
    assert check_replaceable(bundle, force=True).names == set(names(bundle))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_name_that_runtimes_cannot_open_is_refused_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="is no text in UTF-8"):
        check_replaceable(tmp_path / os.fsdecode(b"out\xff"), force=False)


def test_a_damaged_bundle_may_be_replaced(bundle):
    (bundle / "window.onnx").write_bytes(b"damaged")
    (bundle / "pixels.onnx").unlink()
    assert check_replaceable(bundle, force=True).names == set(names(bundle))


@pytest.mark.parametrize(
    "manifest",
    [
        '{"manifest_version": 3}',
        '{"format": "coupled-sampling-bundle", "format_version": 99}',
        '{"format": "coupled-sampling-bundle", "format_version": 1}',
        "not JSON",
        None,
    ],
)
def test_a_folder_whose_manifest_is_not_ours_is_left_alone(bundle, manifest):
    path = bundle / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    before = names(bundle)
    with pytest.raises(OutputError, match=r"cannot replace .*bundle: it is no bundle"):
        check_replaceable(bundle, force=True)
    assert names(bundle) == before


def test_a_file_that_is_no_folder_is_left_alone(tmp_path):
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(OutputError, match="it is no folder"):
        check_replaceable(tmp_path / "letter", force=True)


@posix
@pytest.mark.parametrize("kind", ["file", "deep", "empty folder", "link", "hidden"])
def test_what_the_manifest_does_not_list_stops_it_by_name(bundle, kind):
    mine = bundle / (".mine" if kind == "hidden" else "mine")
    if kind in ("file", "hidden"):
        mine.write_text("years")
    elif kind == "link":
        mine.symlink_to("nowhere")
    else:
        mine.mkdir()
        (mine / "thesis").write_text("years") if kind == "deep" else None
    with pytest.raises(OutputError, match=rf"does not list {mine.name}\b"):
        check_replaceable(bundle, force=True)


def test_a_folder_of_a_listed_name_is_no_file_of_the_bundle(bundle):
    (bundle / "pixels.onnx").unlink()
    (bundle / "pixels.onnx").mkdir()
    (bundle / "pixels.onnx" / "window.onnx").write_text("years")
    with pytest.raises(OutputError, match=r"does not list pixels.onnx.window.onnx in it"):
        check_replaceable(bundle, force=True)


def test_many_of_them_are_counted(bundle):
    for i in range(9):
        (bundle / f"mine{i}").write_text("years")
    with pytest.raises(OutputError, match="mine0, mine1, mine2 and 6 more in it"):
        check_replaceable(bundle, force=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from coupled_sampling.bundles.files import whole_folder, write_whole
def end(path):
    (path / "half").write_text("half") if path.is_dir() else path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
out = Path(sys.argv[1])
if out.suffix:
    write_whole(out, end)
with whole_folder(out) as folder:
    end(folder)
"""


@posix
@pytest.mark.parametrize("name", ["out", "x.png"])
def test_what_a_killed_run_leaves_is_found_and_removed(tmp_path, name):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], env=environment)
    (left,) = tmp_path.iterdir()
    assert leftovers(tmp_path / name) == ((left, False),)
    assert leftovers(tmp_path / "other") == leftovers(tmp_path / "missing" / name) == ()
    assert remove_leftovers(tmp_path / name) == ((left, False),)
    assert names(tmp_path) == []


@posix
def test_what_a_living_run_makes_is_not_left(tmp_path):
    with whole_folder(tmp_path / "out"):
        assert len(names(tmp_path)) == 1
        assert leftovers(tmp_path / "out") == remove_leftovers(tmp_path / "out") == ()
    assert names(tmp_path) == ["out"]


@posix
def test_names_that_only_look_alike_are_left_alone(tmp_path):
    ours = hidden_path(tmp_path / "out")
    for name in (
        ".out-download.partial",
        ".out-12345678.coupled-sampling.partial",
        ours.name[1:],
        f"{ours.name}s",
        ours.name.upper(),
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    ours.symlink_to("mine")
    before = names(tmp_path)
    assert remove_leftovers(tmp_path / "out") == ()
    assert names(tmp_path) == before


@posix
def test_the_only_copy_of_a_bundle_is_put_back(bundle, tmp_path):
    """Killed between two renames, where names cannot be swapped: the old bundle has a hidden name, and so has the new one."""
    out, before = tmp_path / "out", names(bundle)
    bundle.rename(hidden_path(out, REPLACED))
    hidden_path(out).mkdir()
    remove_leftovers(out)
    assert (names(tmp_path), names(out)) == (["out"], before)


@posix
def test_a_second_copy_is_removed_if_it_is_a_bundle_alone(bundle, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(bundle, out)
    aside = bundle.rename(hidden_path(out, REPLACED))
    (aside / "mine").write_text("years")
    with pytest.raises(OutputError, match=r"cannot remove .*does not list mine"):
        remove_leftovers(out)
    assert (aside / "mine").read_text() == "years"
    (aside / "mine").unlink()
    remove_leftovers(out)
    assert names(tmp_path) == ["out"]
    assert json.loads((out / "manifest.json").read_text())["name"] == "fashion"
