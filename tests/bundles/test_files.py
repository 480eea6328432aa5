"""Results get their names whole, or not at all, and take nobody else's; what cannot be written is known before the work."""

import _thread
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from coupled_sampling.bundles import files, renames
from coupled_sampling.bundles.files import check_writable, read_contents, whole_folder, write_whole
from coupled_sampling.bundles.renames import exchange, rename_new
from coupled_sampling.bundles.uninterrupted import uninterrupted
from coupled_sampling.errors import OutputError

links = pytest.mark.skipif(os.name != "posix", reason="makes links")


@pytest.fixture(params=["the kernel's renames", "without them"])
def either(request, monkeypatch):
    """With Linux's call, and as on systems and file systems that do not know it."""
    if request.param == "without them":
        monkeypatch.setattr(renames, "_renameat2", lambda *_: False)


def made(folder, **texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_rename_to_a_free_name(tmp_path, either):
    rename_new(made(tmp_path / "new", a="1"), tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert texts(tmp_path / "out") == {"a": "1"}


@pytest.mark.parametrize("taken", ["full", "empty", "file"])
def test_a_rename_never_replaces(tmp_path, either, taken):
    new, out = made(tmp_path / "new", a="1"), tmp_path / "out"
    out.write_text("mine") if taken == "file" else made(out, **({"b": "mine"} if taken == "full" else {}))
    with pytest.raises(FileExistsError):
        rename_new(new, out)
    assert texts(new) == {"a": "1"}
    assert out.read_text() == "mine" if taken == "file" else texts(out) == ({"b": "mine"} if taken == "full" else {})


def test_what_is_put_under_a_claimed_name_is_not_replaced(tmp_path, monkeypatch):
    """Without the kernel's help an empty folder claims the name; somebody may use it at once."""
    monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    rename = Path.rename

    def slow(self, target):
        (tmp_path / "out" / "mine").write_text("mine")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    with pytest.raises(FileExistsError):
        rename_new(made(tmp_path / "new", a="1"), tmp_path / "out")
    assert texts(tmp_path / "out") == {"mine": "mine"}
    assert texts(tmp_path / "new") == {"a": "1"}


def test_two_folders_swap_their_names(tmp_path):
    one, other = made(tmp_path / "one", a="1"), made(tmp_path / "other", b="2")
    if exchange(one, other):
        assert (texts(one), texts(other)) == ({"b": "2"}, {"a": "1"})
    else:
        pytest.skip("this system or file system cannot")


def test_work_ends_though_it_is_interrupted_and_then_the_interrupt_counts():
    done = []

    def work():
        _thread.interrupt_main()
        time.sleep(0.05)
        done.append("all of it")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            uninterrupted(work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["all of it"]


def test_what_uninterrupted_work_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 // 0)


def write(folder):
    (folder / "a").write_text("new")


def make(out, replacing=None, meanwhile=lambda _: None):
    with whole_folder(out, replacing) as folder:
        write(folder)
        meanwhile(folder)


def contents(paths):
    return {path: path.read_bytes() for path in paths if path.is_file()}


def test_a_folder_appears_whole_and_not_before(tmp_path, either):
    out = tmp_path / "out"
    with whole_folder(out) as folder:
        write(folder)
        assert not out.exists()
    assert (names(tmp_path), texts(out)) == (["out"], {"a": "new"})
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "other", meanwhile=lambda _: 1 // 0)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("mine", [{"thesis": "years"}, {}])
def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path, either, mine):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"out: somebody else made it meanwhile"):
        make(out, meanwhile=lambda _: made(out, **mine))
    assert (names(tmp_path), texts(out)) == (["out"], mine)


def test_a_folder_that_was_looked_at_is_replaced(tmp_path, either):
    out = made(tmp_path / "out", a="old", b="old")
    with whole_folder(out, read_contents(out)) as folder:
        write(folder)
        assert texts(out) == {"a": "old", "b": "old"}
    assert (names(tmp_path), texts(out)) == (["out"], {"a": "new"})


def test_one_that_vanished_meanwhile_is_no_loss(tmp_path, either):
    out = made(tmp_path / "out", a="old")
    with whole_folder(out, read_contents(out)) as folder:
        write(folder)
        out.rename(tmp_path / "moved")
    assert (names(tmp_path), texts(out)) == (["moved", "out"], {"a": "new"})


@pytest.mark.parametrize("change", ["added", "changed", "of the same size", "within", "another folder", "a file"])
def test_one_that_was_changed_meanwhile_is_not_replaced(tmp_path, either, change):
    out = made(tmp_path / "out", a="old")
    made(out / "inner", c="deep")
    found = {}

    def meanwhile(folder):
        time.sleep(0.01)  # clocks of file systems are coarse
        if change == "added":
            (out / "mine").write_text("years")
        elif change == "changed":
            (out / "a").write_text("years")
        elif change == "of the same size":
            (out / "a").write_text("own")
        elif change == "within":
            (out / "inner" / "mine").write_text("years")
        else:
            out.rename(tmp_path / "moved")
            made(out, a="years") if change == "another folder" else out.write_text("years")
        found.update(contents(path for path in tmp_path.rglob("*") if folder not in path.parents))

    with pytest.raises(OutputError, match=r"cannot replace .*out: .*nothing was changed"):
        make(out, read_contents(out), meanwhile)
    assert contents(tmp_path.rglob("*")) == found
    assert not any(name.startswith(".") for name in names(tmp_path))


def test_what_is_added_at_the_last_moment_is_not_lost(tmp_path, either, monkeypatch):
    """After the last look, and before the folder has another name."""
    out, check, looks = made(tmp_path / "out", a="old"), files._check_unchanged, []

    def looked(*arguments):
        check(*arguments)
        looks.append(arguments)
        if len(looks) == 1:
            (out / "mine").write_text("years")

    monkeypatch.setattr(files, "_check_unchanged", looked)
    with pytest.raises(OutputError, match="mine in it was changed meanwhile"):
        make(out, read_contents(out))
    assert (names(tmp_path), texts(out)) == (["out"], {"a": "old", "mine": "years"})


def test_a_name_that_is_taken_between_two_renames_costs_nobody_anything(tmp_path, monkeypatch):
    """Where names cannot be swapped; what was there cannot go back, so it stays, and is named."""
    monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    out, check, looks = made(tmp_path / "out", a="old"), files._check_unchanged, []

    def looked(*arguments):
        check(*arguments)
        looks.append(arguments)
        if len(looks) == 2:
            made(out, mine="years")

    monkeypatch.setattr(files, "_check_unchanged", looked)
    with pytest.raises(OutputError, match=r"what was there lies in (.*)") as refused:
        make(out, read_contents(out))
    kept = Path(str(refused.value).rpartition(" ")[2])
    assert (texts(out), texts(kept)) == ({"mine": "years"}, {"a": "old"})
    assert names(tmp_path) == sorted(["out", kept.name])


@pytest.mark.parametrize("stage", ["the first look", "the swap", "the second look"])
def test_a_fault_while_a_folder_is_replaced_leaves_the_old_one(tmp_path, either, monkeypatch, stage):
    out, calls = made(tmp_path / "out", a="old"), []
    name = "exchange" if stage == "the swap" else "_check_unchanged"
    inner = getattr(files, name)

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == (2 if stage == "the second look" else 1):
            raise OSError("broken disk")
        return inner(*arguments)

    monkeypatch.setattr(files, name, fails)
    with pytest.raises(OutputError, match="broken disk"):
        make(out, read_contents(out))
    assert (names(tmp_path), texts(out)) == (["out"], {"a": "old"})


@links
def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path, either):
    real, link = made(tmp_path / "real", a="old"), tmp_path / "link"
    link.symlink_to("real")
    with pytest.raises(OutputError):
        make(link)
    assert texts(real) == {"a": "old"}
    with whole_folder(link, read_contents(real)) as folder:
        write(folder)
    assert link.is_symlink()
    assert (names(tmp_path), texts(real)) == (["link", "real"], {"a": "new"})
    fresh = tmp_path / "fresh"
    fresh.symlink_to("made")
    with whole_folder(fresh) as folder:
        write(folder)
    assert fresh.is_symlink()
    assert texts(tmp_path / "made") == {"a": "new"}


@links
@pytest.mark.parametrize("leads", ["a loop", "a missing folder", "below a loop", "below a file"])
def test_paths_that_lead_nowhere_are_refused_before_the_work(tmp_path, leads):
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "far").symlink_to("missing/out")
    (tmp_path / "file").write_text("mine")
    path = {"a loop": "loop", "a missing folder": "far", "below a loop": "loop/out", "below a file": "file/out"}[leads]
    words = "the folder .*missing does not exist" if leads == "a missing folder" else "loop of links|Not a directory"
    before = names(tmp_path)
    for attempt in (check_writable, lambda path: write_whole(path, pytest.fail)):
        with pytest.raises(OutputError, match=words):
            attempt(tmp_path / path)
    with pytest.raises(OutputError, match=words), whole_folder(tmp_path / path):
        pytest.fail("it began")
    assert names(tmp_path) == before


def test_a_folder_without_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may do anything
    with pytest.raises(OutputError, match=r"no permission for the folder"):
        check_writable(tmp_path / "out")
    with pytest.raises(OutputError, match=r"no permission for the folder"), whole_folder(tmp_path / "out"):
        pytest.fail("it began")


@links
def test_a_file_is_replaced_whole_and_through_links(tmp_path):
    path, link = tmp_path / "x.png", tmp_path / "link"
    path.write_text("old")
    link.symlink_to("x.png")
    with pytest.raises(ZeroDivisionError):
        write_whole(path, lambda partial: (partial.write_text("half"), 1 // 0))
    with pytest.raises(OutputError, match="disk full"):
        write_whole(path, full_disk)
    assert (names(tmp_path), path.read_text()) == (["link", "x.png"], "old")
    write_whole(
        link, lambda partial: (partial.write_text("new"), partial.suffix == ".png" or pytest.fail(partial.name))
    )
    assert link.is_symlink()
    assert (names(tmp_path), path.read_text()) == (["link", "x.png"], "new")


def full_disk(_):
    raise OSError("disk full")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_results_have_the_permissions_of_any_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", lambda partial: partial.write_text("1"))
        with whole_folder(tmp_path / "out") as folder:
            write(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_names_as_long_as_the_file_system_takes_them(tmp_path):
    name = "n" * 250
    write_whole(tmp_path / f"{name}.png", lambda partial: partial.write_text("1"))
    with whole_folder(tmp_path / name) as folder:
        write(folder)
    assert names(tmp_path) == [name, f"{name}.png"]
