"""The small onnxruntime-gpu: which GPU code it keeps, that its check sees what is wrong, and parts that come back or are refused.

The library here is made by hand, as is what must come out of it. With a real wheel: ``benchmarks/small_onnxruntime_gpu.py check``.
"""

import lzma
import struct
import sys
import zipfile
from importlib import import_module
from types import SimpleNamespace

import pytest

from coupled_sampling.errors import BundleError, InvalidArgument, OutputError
from standins import ROOT

PTX, CUBIN = 1, 2
SPECIFIC = 0x100000
"""The flag of sm_90a."""
PART = 100
PYTHON = "cpython-399-x86_64-linux-gnu"


def entry(kind, architecture, *names, own=64, flags=0x11, zstd=False):
    """One of a fatbin; a payload that no other has."""
    code = b"".join(b"\0.text." + name.encode() for name in names) + b"\0"
    if kind == PTX:
        code = b"".join(b".visible .entry " + name.encode() + b"(\n" for name in names)
    code = (b"\x28\xb5\x2f\xfd" if zstd else f"code {kind} {architecture} ".encode()) + code
    padded = code.ljust(len(code) // 8 * 8 + 8, b"\0")
    fields = kind, 0x101, own, len(padded), len(code) if zstd else 0, 0, 1, 8, architecture, 0, flags, 0, 0
    return struct.pack("<HHIQIIHHIQQQQ", *fields).ljust(own, b"\x07") + padded


def fatbin(*entries, room=None):
    code = b"".join(entries)
    return (struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(code)) + code).ljust(room or 0, b"\0")


GEMM = {
    "75": entry(CUBIN, 75, "gemm", "softmax"),
    "80": entry(CUBIN, 80, "gemm", "softmax"),
    "90a": entry(CUBIN, 90, "gemm", "softmax", flags=SPECIFIC | 0x11),
    "120": entry(CUBIN, 120, "gemm", "softmax", own=112),
}
OLD = {
    "75": entry(CUBIN, 75, "old"),
    "80": entry(CUBIN, 80, "old"),
    "ptx80": entry(PTX, 80, "old"),
    "ptx120": entry(PTX, 120, "old"),
}
EXPERTS = {"90a": entry(CUBIN, 90, "experts_one", "experts_two", flags=SPECIFIC | 0x11)}
MIXED = {"90a": entry(CUBIN, 90, "experts_one", "norm"), "86": entry(CUBIN, 86, "experts_one", "norm")}
NEWER = {"120": entry(CUBIN, 120, "newer")}
OTHER_KIND = {"link": entry(8, 80, "link"), "90": entry(CUBIN, 90, "link")}
WHOLE = GEMM, OLD, EXPERTS, MIXED, NEWER, OTHER_KIND


def library(*kept):
    """An ELF file with the fatbins of WHOLE, or with those entries of each alone, every fatbin where it is in the whole one."""
    parts = []
    for names, held in zip(kept or WHOLE, WHOLE, strict=True):
        room = len(fatbin(*held.values()))
        parts.append(fatbin(*(held[name] for name in names), room=room))
    code = parts[0] + bytes(16) + b"".join(parts[1:]) + bytes(8)
    text = b"\0libcudart.so.13\0libdl.so.2\0"
    dynamic = struct.pack("<8Q", 1, 1, 1, 17, 14, 5, 0, 0)
    names = b"\0.nv_fatbin\0.dynstr\0.dynamic\0.shstrtab\0"
    contents, at, rows = b"", 64, [bytes(64)]
    for name, content in ((b".nv_fatbin", code), (b".dynstr", text), (b".dynamic", dynamic), (b".shstrtab", names)):
        content += bytes(-len(content) % 8)
        where = names.index(b"\0" + name) + 1
        size = len(code) if name == b".nv_fatbin" else len(content)
        rows.append(struct.pack("<II4QIIQQ", where, 1, 0, 0, at, size, 0, 0, 8, 0))
        contents, at = contents + content, at + len(content)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, 5, 4
    )
    return head + contents + b"".join(rows)


KEPT = {
    (90, ""): (["90a"], ["ptx80"], ["90a"], ["90a"], [], ["link", "90"]),
    (90, "experts"): (["90a"], ["ptx80"], [], ["90a"], [], ["link", "90"]),
    (90, "experts|norm|^old$"): (["90a"], [], [], [], [], ["link", "90"]),
    (89, ""): (["80"], ["80", "ptx80"], [], ["86"], [], ["link"]),
    (80, ""): (["80"], ["80"], [], [], [], ["link"]),
}
"""By architecture and what is left out, what stays of every fatbin: for 9.0 no cubin of 8.0, which does not run there, but PTX."""


@pytest.fixture
def fatbins(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("fatbins")


@pytest.fixture
def script(fatbins, monkeypatch):
    script = import_module("small_onnxruntime_gpu")
    monkeypatch.setattr(
        script, "FILTERS", [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    )  # the large dictionary takes its time
    return script


@pytest.mark.parametrize(("architecture", "left_out"), KEPT)
def test_only_what_the_gpu_needs_is_kept_and_nothing_else_changes(fatbins, architecture, left_out):
    small = bytearray(library())
    fatbins.keep_only(small, architecture, left_out)
    kept = KEPT[architecture, left_out]
    assert small == library(*kept)
    counts = fatbins.compare(library(), small, architecture, left_out)
    assert (counts["fatbins"], counts["kept"]) == (len(WHOLE), sum(map(len, kept)))
    assert counts["kept"] + counts["left out"] == sum(map(len, KEPT[architecture, ""]))


def test_the_libraries_that_it_needs(fatbins):
    assert fatbins.needed_libraries(library()) == ["libcudart.so.13", "libdl.so.2"]


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ((["80"], *KEPT[90, ""][1:]), "sm_90 at byte .* missing"),
        ((["90a", "80"], *KEPT[90, ""][1:]), "code that is not needed"),
        ((["90a"], ["80"], *KEPT[90, ""][2:]), "sm_80 at byte .* missing"),
        ((["90a"], ["ptx80"], [], ["90a"], [], ["link", "90"]), "sm_90 at byte .* missing"),
    ],
)
def test_the_check_sees_other_code(fatbins, kept, said):
    with pytest.raises(fatbins.NotReadable, match=said):
        fatbins.compare(library(), library(*kept), 90)


def test_the_check_sees_every_byte(fatbins):
    whole, small = library(), library(*KEPT[90, ""])
    for i in range(0, len(small), 5):  # every one would take a second
        changed = bytearray(small)
        changed[i] ^= 1
        with pytest.raises(fatbins.NotReadable):
            fatbins.compare(whole, changed, 90)
    with pytest.raises(fatbins.NotReadable, match="differs outside"):
        fatbins.compare(whole, small + b"\0", 90)


def test_what_is_not_laid_out_so_is_refused(fatbins):
    whole = library()
    start = whole.index(struct.pack("<I", 0xBA55ED50))
    assert_refused = [
        (whole.replace(b"\x7fELF\x02", b"\x7fELF\x01"), "no 64-bit"),
        (whole.replace(b".nv_fatbin", b".nv_fatbim"), "no section"),
        (whole[:start] + b"\x51" + whole[start + 1 :], "no fatbin at byte"),
        (whole[: start + 8] + b"\xff" * 8 + whole[start + 16 :], "no fatbin at byte"),
        (whole[: start + 20] + b"\x08" + whole[start + 21 :], "no entry at byte"),
        (whole[: start + 24] + b"\xff\xff\xff" + whole[start + 27 :], "no entry at byte"),
    ]
    for data, said in assert_refused:
        with pytest.raises(fatbins.NotReadable, match=said):
            fatbins.fatbins(data)
    with pytest.raises(fatbins.NotReadable, match="no code for sm_50"):
        fatbins.keep_only(bytearray(whole.replace(OTHER_KIND["link"], OTHER_KIND["90"])), 50)


def test_names_in_compressed_code(fatbins, monkeypatch):
    packed = entry(CUBIN, 90, "packed", zstd=True)
    (found,) = fatbins.fatbin_at(fatbin(packed), 0, 16 + len(packed)).entries
    decompressor = SimpleNamespace(decompress=lambda code: code.replace(b"packed", b"unpacked"))
    monkeypatch.setitem(sys.modules, "zstandard", SimpleNamespace(ZstdDecompressor=lambda: decompressor))
    assert fatbins.kernels(fatbin(packed), found) == ["unpacked"]
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(fatbins.NotReadable, match="pip install zstandard"):
        fatbins.kernels(fatbin(packed), found)


@pytest.fixture
def wheel(script, tmp_path):
    path = tmp_path / "onnxruntime_gpu-9.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (
            "onnxruntime/__init__.py",
            f"onnxruntime/capi/onnxruntime_pybind11_state.{PYTHON}.so",
            "onnxruntime/capi/_state.py",
            "onnxruntime/capi/libonnxruntime.so.9",
            "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
            "onnxruntime/capi/libonnxruntime_providers_shared.so",
            "onnxruntime/tools/tool.py",
            "onnxruntime_gpu-9.dist-info/METADATA",
            "onnxruntime_gpu-9.dist-info/RECORD",
        ):
            archive.writestr(name, name * 9)
        archive.writestr(script.PROVIDER, library())
    return path


@pytest.fixture
def parts(script, wheel, tmp_path):
    folder = tmp_path / "parts"
    script.make(wheel, folder, "sm_90a", "experts", PART, 10_000)
    return folder


def test_parts_are_small_and_come_back_as_a_package(script, wheel, parts, tmp_path):
    sizes = [path.stat().st_size for path in sorted(parts.glob("part-*"))]
    assert len(sizes) > 2
    assert sizes[:-1] == [PART] * (len(sizes) - 1)
    contents = script.join(parts, tmp_path / "joined", PYTHON)
    assert contents["needs"] == ["libcudart.so.13", "libdl.so.2"]
    files = [path for path in (tmp_path / "joined").rglob("*") if path.is_file()]
    found = {path.relative_to(tmp_path / "joined").as_posix(): path for path in files}
    assert found.keys() == {
        "onnxruntime/__init__.py",
        "onnxruntime/capi/_state.py",
        f"onnxruntime/capi/onnxruntime_pybind11_state.{PYTHON}.so",
        "onnxruntime/capi/libonnxruntime_providers_shared.so",
        script.PROVIDER,
        "onnxruntime_gpu-9.dist-info/METADATA",
    }
    assert found[script.PROVIDER].read_bytes() == library(*KEPT[90, "experts"])
    found_by_check = script.check(wheel, parts)
    assert found_by_check["placement"].startswith("not compared")
    assert (found_by_check["kept"], found_by_check["left out"]) == (5, 1)


def damage(parts, how):
    if how == "missing":
        (parts / "part-01").unlink()
    elif how == "short":
        (parts / "part-01").write_bytes((parts / "part-01").read_bytes()[:-1])
    elif how == "swapped":
        first = (parts / "part-00").read_bytes()
        (parts / "part-00").write_bytes((parts / "part-01").read_bytes())
        (parts / "part-01").write_bytes(first)
    elif how == "no list":
        (parts / "parts.json").unlink()
    else:
        text = (parts / "parts.json").read_text()
        changes = {"cut list": (text[200:], ""), "elsewhere": ("onnxruntime/__init__.py", "../away.py")}
        changes["other list"] = ('"sha256": "', '"sha256": "0')
        before, after = changes[how]
        (parts / "parts.json").write_text(after.join(text.rsplit(before, 1)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "part-01 is missing; copy them again"),
        ("short", "part-01 has 99 bytes, not 100"),
        ("swapped", "part-00 has another digest, part-01 has another digest"),
        ("no list", "cannot read .*parts.json"),
        ("cut list", "is not what `make` wrote"),
        ("elsewhere", "names files outside the folder"),
        ("other list", "came out of .* with another digest"),
        ("other Python", "parts are for cpython-399-.*, this Python is cpython-311"),
    ],
)
def test_wrong_parts_give_one_error_and_leave_nothing(script, parts, tmp_path, how, said):
    if how != "other Python":
        damage(parts, how)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BundleError, match=said):
        script.join(parts, tmp_path / "joined", "cpython-311" if how == "other Python" else PYTHON)
    assert sorted(tmp_path.iterdir()) == before


def test_what_was_there_is_not_replaced_and_that_is_said_before_the_work(script, wheel, parts, tmp_path, monkeypatch):
    (tmp_path / "joined").mkdir()
    before = {path: path.read_bytes() for path in parts.iterdir()}
    monkeypatch.setattr(script.lzma, "LZMAFile", None)
    with pytest.raises(OutputError, match="joined exists; name another folder"):
        script.join(parts, tmp_path / "joined", PYTHON)
    with pytest.raises(OutputError, match="parts exists; name another folder"):
        script.make(wheel, parts, "sm_90", "", PART, 10_000)
    assert list((tmp_path / "joined").iterdir()) == []
    assert {path: path.read_bytes() for path in parts.iterdir()} == before


def test_a_run_that_is_interrupted_leaves_nothing(script, wheel, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.PartWriter, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.make(wheel, tmp_path / "parts", "sm_90", "", PART, 10_000)
    assert list(tmp_path.iterdir()) == [wheel]


def test_wheels_that_cannot_be_made_small(script, wheel, tmp_path):
    with pytest.raises(InvalidArgument, match=r"more than the 0\.0 of --total-bytes; leave out more"):
        script.make(wheel, tmp_path / "parts", "sm_90", "", PART, 500)
    with pytest.raises(InvalidArgument, match=r"--architecture is '9\.0'"):
        script.make(wheel, tmp_path / "parts", "9.0", "", PART, 10_000)
    with pytest.raises(InvalidArgument, match="--part-bytes is 0, expected a number of bytes from 1 on"):
        script.make(wheel, tmp_path / "parts", "sm_90", "", 0, 10_000)
    with pytest.raises(InvalidArgument, match=r"--leave-out is '\(', no regular expression"):
        script.make(wheel, tmp_path / "parts", "sm_90", "(", PART, 10_000)
    (tmp_path / "no.whl").write_text("no archive")
    with pytest.raises(BundleError, match="cannot read the wheel"):
        script.make(tmp_path / "no.whl", tmp_path / "parts", "sm_90", "", PART, 10_000)
    zipfile.ZipFile(tmp_path / "cpu.whl", "w").close()
    with pytest.raises(BundleError, match="pass a wheel of onnxruntime-gpu"):
        script.make(tmp_path / "cpu.whl", tmp_path / "parts", "sm_90", "", PART, 10_000)
    assert not (tmp_path / "parts").exists()


def test_the_commands(script, wheel, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["small_onnxruntime_gpu.py", *map(str, words)])
        script.main()
        return capsys.readouterr().out

    monkeypatch.setattr(script, "python_suffix", lambda: PYTHON)
    parts, joined = tmp_path / "parts", tmp_path / "joined"
    assert run("make", wheel, parts, "--leave-out", "experts").startswith("1 parts, 0.0 MiB, of 0.0")
    said = run("join", parts, joined)
    assert f"export PYTHONPATH={joined}:" in said
    assert "It loads libcudart.so.13 and" in said
    with pytest.raises(SystemExit, match=r"^join: .*parts.json: .*copy the whole folder$"):
        run("join", tmp_path, tmp_path / "again")
