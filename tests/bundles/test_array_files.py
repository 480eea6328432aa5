"""Files of one array: what ``numpy.save`` writes comes back, and a header is believed no further than the file goes."""

import io

import numpy as np
import pytest

from coupled_sampling.bundles.array_files import array_of, read_array
from coupled_sampling.bundles.json_files import CONDITION
from coupled_sampling.errors import BundleError


def saved(array, **settings):
    stream = io.BytesIO()
    np.save(stream, array, **settings)
    return stream.getvalue()


def with_shape(shape, kind="'<f4'"):
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize("dtype", ["<f2", ">f8", "<f4", "u1", "?", "<i8"])
def test_what_numpy_saves_comes_back(dtype):
    for array in (np.arange(12).reshape(3, 4).astype(dtype), np.zeros((0, 5), dtype), np.ones((), dtype)):
        for one in (array, np.asfortranarray(array)):
            found = array_of(saved(one))
            np.testing.assert_array_equal(found, one)
            assert found.dtype == one.dtype


HOSTILE = {
    "nothing": b"",
    "magic": b"\x93NUMPY\x01\x00",
    "version": b"\x93NUMPY\x09\x00" + bytes(64),
    "cut off": saved(np.ones(9))[:-1],
    "longer": saved(np.ones(9)) + b"x",
    "terabytes": with_shape("(3, 1000000000000)"),
    "beyond integers": with_shape("(3, 100000000000000000000000)"),
    "negative": with_shape("(-4, -4)"),
    "axes": with_shape(str((1,) * 40 + (16,))),
    "no header": with_shape("(3, 10"),
    "half a text": with_shape("(3, 10L), '''"),
    "objects": saved(np.array([{}]), allow_pickle=True),
    "texts": saved(np.array(["a"])),
    "an archive": b"PK\x03\x04" + bytes(30),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_array_is_refused_by_its_file(case, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(BundleError, match=r"a\.npy is no array of numpy's") as refused:
        read_array(path, CONDITION)
    assert len(str(refused.value)) < 600
