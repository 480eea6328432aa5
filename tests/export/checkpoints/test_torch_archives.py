"""PyTorch's archives without PyTorch: tensors come as they were saved, nothing is run, what is damaged or hostile is refused."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints import open_checkpoint
from standins.torch_archives import Code, Module, Tensor, archive_of, call, named, pickled, written

ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs the extra [export]")

TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
STORED = np.arange(24, dtype=np.float32)
STORAGE = {"s": STORED.tobytes()}


def opened(folder, content, name="model.pt"):
    (folder / name).write_bytes(content)
    return open_checkpoint(folder / name)


def read(folder, content, name="model.pt"):
    with opened(folder, content, name) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names()}


def arrays():
    random = np.random.default_rng(0)
    table = {f"of.{kind}": random.integers(0, 2, (3, 4)).astype(np.dtype(kind)) for kind in TYPES}
    return table | {"number": np.array(2.5), "none": np.zeros((0, 3), np.float32)}


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("order", ["little", "big"])
def test_tensors_come_as_they_were_saved(tmp_path, order):
    same(read(tmp_path, archive_of(arrays(), order=order)), arrays())


def test_the_table_may_be_an_entry_and_what_is_beside_it_is_not_read(tmp_path):
    content = archive_of({"step": 3, "model": arrays() | {"a._extra_state": None}, "rates": [1.5, (None, True)]})
    same(read(tmp_path, content), arrays())


def test_headers_say_what_there_is_before_anything_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    with opened(tmp_path, archive_of(arrays())) as checkpoint:
        info = checkpoint.info("of.bfloat16")
        assert (checkpoint.kind, checkpoint.config["model_type"]) == ("torch", "mine")
        assert info == ((3, 4), "bfloat16", 24, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="expected \\(4, 3\\)"):
            checkpoint.read("of.bfloat16", (4, 3))


VIEWS = {
    "transposed": (Tensor("s", "float32", 24, (6, 4), (1, 6)), STORED.reshape(4, 6).T),
    "every other": (Tensor("s", "float32", 24, (2, 3), (12, 2), 1), STORED[1:].reshape(-1)[[0, 2, 4, 12, 14, 16]].reshape(2, 3)),
    "the end": (Tensor("s", "float32", 24, (4,), (1,), 20), STORED[20:]),
    "one of them": (Tensor("s", "float32", 24, (), (), 7), STORED[7]),
    "overlapping": (Tensor("s", "float32", 24, (3, 4), (2, 1)), STORED[[[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]]),
}  # fmt: skip


def test_tensors_may_share_a_storage_and_have_any_strides(tmp_path):
    found = read(tmp_path, archive_of({name: tensor for name, (tensor, _) in VIEWS.items()}, storages=STORAGE))
    for name, (_, expected) in VIEWS.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable


def test_parameters_and_a_state_with_versions(tmp_path):
    tensor = Tensor("s", "float32", 24, (24,), (1,))
    parameter = call(named("torch._utils", "_rebuild_parameter"), tensor, True, {})
    ordered = named("collections", "OrderedDict") + b")R" + b"(" + written("a") + parameter + b"u"
    state = Code(ordered + written({"_metadata": {"": {"version": 1}}}) + b"b")
    assert read(tmp_path, archive_of(state, storages=STORAGE))["a"].tolist() == STORED.tolist()


def test_torchscript_names_tensors_by_what_leads_to_them(tmp_path):
    shared = Module({"weight": np.ones(2, np.float32)}, "Linear")
    sizes = call(named("torch.jit._pickle", "build_intlist"), [1])
    inner = Module({"training": False, "0": shared, "levels": np.arange(3), "sizes": sizes})
    found = read(tmp_path, archive_of(Module({"scale": np.array(2.0), "decoder": inner, "none": None})), "decoder.jit")
    same(found, {"scale": np.array(2.0), "decoder.0.weight": np.ones(2, np.float32), "decoder.levels": np.arange(3)})


class Run:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_run(tmp_path):
    order = Run()
    order.path = tmp_path / "made"
    for protocol in (2, 4):
        with pytest.raises(CheckpointError, match=r"names (posix|nt)\.mkdir, which is no part of a checkpoint"):
            read(tmp_path, archive_of({}, pickle=pickle.dumps({"a": order}, protocol)))
    assert not order.path.exists()


TENSOR = Tensor("s", "float32", 24, (24,), (1,))


def of(**changes):
    return {"a": Tensor(**vars(TENSOR) | changes)}


def doubled(times):
    """Instructions for a tuple of twice a tuple of twice a tuple: short, and long to hash."""
    return b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(times))


PICKLES = {
    "a storage of no such kind": (pickled({"a": named("torch", "QInt8Storage")}), "names torch.QInt8Storage"),
    "a long name": (pickled(named("m" * 10_000, "n")), "names mmm"),
    "protocol 0": (pickle.dumps({"a": 1}, 0), "instruction"),
    "no pickle": (b"\x80\x02\xff", "pickle is damaged"),
    "cut off": (pickled(of())[:-9], "pickle is damaged"),
    "no end": (b"\x80\x02}", "pickle is damaged"),
    "empty stack": (b"\x80\x02.", "a value is missing"),
    "nothing kept": (b"\x80\x02h\x07.", "kept under the number 7"),
    "half an item": (b"\x80\x02}(K\x01u.", "pickle is damaged"),
    "a key that takes for ever": (b"\x80\x02}" + doubled(90) + b"K\x01s.", "a key of a dictionary"),
    "a name that takes for ever": (b"\x80\x04" + doubled(90) + b"\x8c\x01a\x93.", "no text"),
    "another function": (pickled(call(named("torch", "FloatStorage"), 3)), "call of FloatStorage"),
    "large": (b"\x80\x02" + b"N" * 2**22 + b".", "4194304 are the most"),
}
CONTENTS = {
    "a list": ([1], "holds a list, expected a dictionary of tensors"),
    "numbers among tensors": (of() | {"epoch": 3}, "entry 'epoch' is a int"),
    "two tables": ({"model": of(), "module": of()}, "model, module, expected one"),
    "nothing": ({}, "holds no tensors"),
    "frozen": (Module({"training": False}), "save it unfrozen"),
    "no elements": (of(key="t"), "data/t, are missing"),
    "short elements": (of(count=25, shape=(25,)), "has 96 bytes, expected 25 of float32"),
    "another type": (of(dtype="float64"), "has 96 bytes, expected 24 of float64"),
    "beyond the end": (of(first=1), "reach beyond the 24"),
    "strides beyond the end": (of(shape=(2, 2), strides=(23, 1)), "reach beyond the 24"),
    "expanded": (of(shape=(25,), strides=(0,)), "several times"),
    "huge": (of(shape=(2**40, 2**40), strides=(0, 0)), "several times"),
    "negative": (of(strides=(-1,)), "a tensor is not described"),
    "axes and strides": (of(strides=(1, 1)), "a tensor is not described"),
    "axes": (of(shape=(1,) * 40, strides=(1,) * 40), "40 axes"),
    "no sizes": (of(shape=(2.0,)), "a tensor is not described"),
    "empty and huge": (of(shape=(0, 2**62), strides=(1, 1)), "it is empty, and of shape"),
}


@pytest.mark.parametrize("case", [*PICKLES, *CONTENTS])
def test_what_is_damaged_or_hostile_is_refused(tmp_path, case):
    given, message = PICKLES.get(case) or CONTENTS[case]
    content = archive_of({}, pickle=given) if case in PICKLES else archive_of(given, storages=STORAGE)
    with pytest.raises(CheckpointError, match=message) as refused:
        opened(tmp_path, content)
    assert len(str(refused.value)) < 600


def test_archives_of_something_else_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="byteorder is b'middle'"):
        opened(tmp_path, archive_of(of(), storages=STORAGE, more={"byteorder": b"middle"}))
    with pytest.raises(CheckpointError, match=r"0 entries NAME/data\.pkl"):
        opened(tmp_path, archive_of(of(), storages=STORAGE, compression=zipfile.ZIP_DEFLATED))
    two = archive_of(of(), storages=STORAGE, more={"data.pkL": b"."}).replace(b"data.pkL", b"data.pkl")
    with pytest.raises(CheckpointError, match=r"two entries .model/data\.pkl"):
        opened(tmp_path, two)


def test_modules_that_hold_each_other_are_refused(tmp_path):
    itself = b"\x80\x02" + named("__torch__", "M") + b")\x81q\x00}(" + written("a") + b"h\x00ub."
    pair = Module({})
    for _ in range(40):
        pair = Module({"a": pair})
    twice = b"\x80\x02" + named("__torch__", "M") + b")\x81q\x00"
    for i in range(25):
        twice += (
            named("__torch__", "M")
            + b")\x81}("
            + b"".join(written(k) + b"h" + bytes([i]) for k in "ab")
            + b"ubq"
            + bytes([i + 1])
        )
    for content in (itself, pickled(pair), twice + b"."):
        with pytest.raises(CheckpointError, match="modules in each other"):
            opened(tmp_path, archive_of({}, pickle=content))


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    whole = archive_of(arrays())
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(CheckpointError, match="no whole archive"):
            opened(tmp_path, whole[:length])


def test_entries_that_are_not_where_the_table_says_are_refused(tmp_path):
    whole = archive_of(of(), storages=STORAGE)
    at = whole.index(b"model/data/s") - 30
    with pytest.raises(CheckpointError, match="is not where"):
        opened(tmp_path, whole[:at] + b"XX" + whole[at + 2 :])


@pytest.mark.parametrize("offset", [10**6, 2**62, 2**64 - 1])
def test_entries_behind_the_end_of_any_file_are_refused(tmp_path, offset):
    whole = archive_of(of(), storages=STORAGE)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        table = archive.start_dir
    at = whole.rindex(b"model/data/s") - 46  # its header in the table, which here says where it is in 64 bits
    far = bytearray(whole[at : at + 46])
    far[42:46], far[30:32] = b"\xff" * 4, struct.pack("<H", 12)
    longer = bytes(far) + b"model/data/s" + struct.pack("<HHQ", 1, 8, offset)
    content = bytearray(whole[:at] + longer + whole[at + 46 + 12 :])
    end = content.rindex(b"PK\x05\x06")
    content[end + 12 : end + 16] = struct.pack("<I", end - table)
    with pytest.raises(CheckpointError, match="model/data/s is not where"):
        opened(tmp_path, bytes(content))


def test_a_file_that_changes_after_it_was_opened_is_told(tmp_path):
    with opened(tmp_path, archive_of(of(), storages=STORAGE)) as checkpoint:
        place = (tmp_path / "model.pt").read_bytes().index(b"model/data/s")
        os.truncate(tmp_path / "model.pt", place + 50)
        with pytest.raises(CheckpointError, match=r"has changed|is not where"):
            checkpoint.read("a")


def test_a_folder_is_opened_by_its_one_archive(tmp_path):
    (tmp_path / "scheduler.pt").write_bytes(archive_of({"b": np.zeros(1)}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == ("b",)
    (tmp_path / "other.pt").write_bytes(archive_of({"b": np.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"holds 2 files of PyTorch \(other.pt, scheduler.pt\), expected one"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.pt").write_bytes(archive_of({"a": np.zeros(1)}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == ("a",)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(CheckpointError, match="quantised by 'gptq'"):
        open_checkpoint(tmp_path)


@pytest.mark.torch
def test_archives_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).to(torch.bfloat16).state_dict()
    state |= {
        "transposed": base.T,
        "view": base[1:3, ::2],
        "parameter": torch.nn.Parameter(base),
        "number": torch.tensor(3),
    }
    for content in (state, {"model": state, "epoch": 3}):
        torch.save(content, tmp_path / "model.pt")
        with open_checkpoint(tmp_path / "model.pt") as checkpoint:
            assert checkpoint.names() == tuple(state)
            for name, tensor in state.items():
                found = checkpoint.read(name).astype(np.float64)
                np.testing.assert_array_equal(found, tensor.detach().to(torch.float64).numpy(), err_msg=name)
    (tmp_path / "by_hand.pt").write_bytes(archive_of(arrays()))
    for name, tensor in torch.load(tmp_path / "by_hand.pt", weights_only=True).items():
        np.testing.assert_array_equal(tensor.to(torch.float64).numpy(), arrays()[name].astype(np.float64))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_of_pytorch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 1), torch.nn.Sequential(torch.nn.BatchNorm3d(3)))
    torch.jit.trace(module.eval(), torch.zeros(1, 2, 1, 4, 4)).save(str(tmp_path / "decoder.jit"))
    state = module.state_dict()
    with open_checkpoint(tmp_path / "decoder.jit") as checkpoint:
        assert sorted(checkpoint.names()) == sorted(state)
        for name, tensor in state.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())
