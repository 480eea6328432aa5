"""GPU code in a shared library: what it holds for which GPU, and the same library with the code for one GPU only.

A compiler puts the code of every source file into a fatbin: 16 bytes of header (magic, version, own size, size of what follows),
then entries one after the other. An entry has a header and a payload: a cubin (machine code of one architecture, such as sm_90) or
PTX (which a driver compiles for any later one), as it is or compressed with zstd. NVIDIA does not document this. The fields are
those that public readers agree on, checked with NVIDIA's cuobjdump; what does not add up is refused.

The library with less code has the same length, and all fatbins where they were, for code on the host points to them. A fatbin's
entries that are not needed are taken out, its size is lowered, and the bytes that became free are zero. (Entries whose payload is
zeroed in place are not enough: cuobjdump stops at the first, "Uncompress failed".)

Which entries a GPU can use, by NVIDIA's rules: a cubin of the same major version and no later minor one, so that a cubin of sm_80
does not run on sm_90; PTX of its architecture or an earlier one. Cubins of sm_90a, with instructions of this GPU alone, have the
architecture 90 and a flag: they run on sm_90 and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coupled_sampling.errors import CoupledSamplingError

MAGIC = 0xBA55ED50
HEADER = struct.Struct("<IHHQ")
"""Of a fatbin: magic, version, size of this header, bytes that follow it."""
ENTRY = struct.Struct("<HHIQIIHHIQQQQ")
"""Of an entry: kind, version, size of this header, padded payload, payload if compressed, a second header, minor and major version
of the format, architecture, a name, flags, nothing, size when decompressed."""
PTX, CUBIN = 1, 2
SECTION = ".nv_fatbin"
ZSTD = b"\x28\xb5\x2f\xfd"


class NotReadable(CoupledSamplingError):  # noqa: N818 - reads as what it is
    """A library that is not laid out as this module knows it, or is not what was made of another."""


@dataclass(frozen=True)
class Entry:
    """Code for one architecture: offsets in the library, and what its header says."""

    start: int
    payload: int
    end: int
    stored: int
    kind: int
    architecture: int

    def runs_on(self, architecture: int) -> bool:
        """Whether a GPU of this architecture could use it."""
        if self.kind == PTX:
            return self.architecture <= architecture
        same_major = self.architecture // 10 == architecture // 10
        return self.kind == CUBIN and same_major and self.architecture <= architecture


@dataclass(frozen=True)
class Fatbin:
    """Code of one source file: from where to where it may reach, where its last entry ends, and its entries."""

    start: int
    first: int
    stop: int
    entries: tuple[Entry, ...]


def sections(library: bytes | bytearray) -> dict[str, tuple[int, int]]:
    """By name, where a section of a 64-bit ELF file begins and ends."""
    if library[:6] != b"\x7fELF\x02\x01":
        raise NotReadable("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", library, 40)
    size, count, names = struct.unpack_from("<HHH", library, 58)
    rows = [struct.unpack_from("<II4Q", library, table + i * size) for i in range(count)]
    text = rows[names][4]
    found = {}
    for name, _, _, _, start, length in rows:
        end = library.index(0, text + name)
        found[library[text + name : end].decode()] = (start, start + length)
    return found


def needed_libraries(library: bytes | bytearray) -> list[str]:
    """Shared libraries that an ELF file names as needed, in its order."""
    found = sections(library)
    if ".dynamic" not in found:
        return []
    start, end = found[".dynamic"]
    text = found[".dynstr"][0]
    pairs = struct.iter_unpack("<QQ", library[start:end])
    places = [text + value for tag, value in pairs if tag == 1]  # DT_NEEDED
    return [library[place : library.index(0, place)].decode() for place in places]


def fatbins(library: bytes | bytearray) -> list[Fatbin]:
    """Every fatbin of a library, in the order of the file."""
    at, end = sections(library).get(SECTION, (0, 0))
    if at == end:
        raise NotReadable(f"no section {SECTION}, so no GPU code")
    found = []
    while at < end:
        if not any(library[at : at + 8]):  # between two object files
            at += 8
            continue
        found.append(fatbin_at(library, at, end))
        at = (found[-1].stop + 7) // 8 * 8
    return found


def fatbin_at(library: bytes | bytearray, at: int, end: int) -> Fatbin:
    """The fatbin that begins at a byte and ends before another."""
    if end - at < HEADER.size:
        raise NotReadable(f"a fatbin at byte {at} is cut short")
    magic, _, own, length = HEADER.unpack_from(library, at)
    first, stop = at + own, at + own + length
    if magic != MAGIC or own < HEADER.size or stop > end:
        raise NotReadable(f"no fatbin at byte {at} (magic {magic:#x}, {length} bytes)")
    entries, here = [], first
    while here < stop:
        entries.append(_entry_at(library, here, stop))
        here = entries[-1].end
    return Fatbin(at, first, stop, tuple(entries))


def _entry_at(library: bytes | bytearray, at: int, stop: int) -> Entry:
    if stop - at < ENTRY.size:
        raise NotReadable(f"an entry at byte {at} is cut short")
    kind, _, own, padded, compressed, _, _, _, architecture, *_ = ENTRY.unpack_from(library, at)
    payload, end = at + own, at + own + padded
    if own < ENTRY.size or end > stop or compressed > padded:
        raise NotReadable(f"no entry at byte {at} (header of {own} bytes, payload of {padded})")
    return Entry(at, payload, end, compressed or padded, kind, architecture)


def usable(entries: Iterable[Entry], architecture: int) -> list[Entry]:
    """Those of a fatbin that a GPU of this architecture needs.

    Cubins of exactly this architecture, and nothing else, where there are any. Otherwise all that it could use: which of them a
    driver takes is the driver's choice. Entries of unknown kinds always.
    """
    entries = list(entries)
    exact = [one for one in entries if one.kind == CUBIN and one.architecture == architecture]
    found = exact or [one for one in entries if one.runs_on(architecture)]
    return [one for one in entries if one in found or one.kind not in (PTX, CUBIN)]


def kernels(library: bytes | bytearray, entry: Entry) -> list[str]:
    """Mangled names of the kernels in an entry."""
    code = bytes(library[entry.payload : entry.payload + entry.stored])
    if code.startswith(ZSTD):
        code = _zstandard().ZstdDecompressor().decompress(code)
    pattern = rb"\.entry\s+([\w$]+)" if entry.kind == PTX else rb"\0\.text\.([\w$.]+)(?=\0)"
    return sorted({name.decode() for name in re.findall(pattern, code)})


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise NotReadable("kernels are compressed; to read their names: pip install zstandard") from None
    return zstandard


def is_left_out(library: bytes | bytearray, entry: Entry, pattern: str) -> bool:
    """Whether an entry has kernels and the pattern is found in the names of all of them."""
    if not pattern or entry.kind not in (PTX, CUBIN):
        return False
    names = kernels(library, entry)
    return bool(names) and all(re.search(pattern, name) for name in names)


def keep_only(library: bytearray, architecture: int, left_out: str = "") -> None:
    """Take out, in place, the code that a GPU of this architecture does not need.

    Parameters
    ----------
    library
        The library's bytes.
    architecture
        As 90 for sm_90.
    left_out
        Entries are left out if the mangled names of all their kernels contain this pattern; none if empty. CUDA has no code for
        these kernels then, as for any kernel that was not compiled for a GPU.
    """
    kept = 0
    for fatbin in fatbins(library):
        needed = [one for one in usable(fatbin.entries, architecture) if not is_left_out(library, one, left_out)]
        code = b"".join(library[one.start : one.end] for one in needed)
        magic, version, own, _ = HEADER.unpack_from(library, fatbin.start)
        HEADER.pack_into(library, fatbin.start, magic, version, own, len(code))
        library[fatbin.first : fatbin.stop] = code.ljust(fatbin.stop - fatbin.first, b"\0")
        kept += len(needed)
    if not kept:
        raise NotReadable(f"no code for sm_{architecture} in it, or none that is not left out")


def compare(
    whole: bytes | bytearray, small: bytes | bytearray, architecture: int, left_out: str = ""
) -> dict[str, int]:
    """Check a library against the whole one it was made from; how many entries and bytes were kept and left out.

    Raises
    ------
    NotReadable
        If anything else differs than `keep_only` may change, or an entry that the GPU needs is missing or not what it was.
    """
    start, end = sections(whole)[SECTION]
    if len(small) != len(whole) or small[:start] != whole[:start] or small[end:] != whole[end:]:
        raise NotReadable(f"it differs outside its section {SECTION}")
    counts = dict.fromkeys(("fatbins", "without code for it", "kept", "bytes kept", "left out", "bytes left out"), 0)
    at = start
    for fatbin in fatbins(whole):
        now = fatbin_at(small, fatbin.start, fatbin.stop)
        if (
            small[at : fatbin.start + 8] != whole[at : fatbin.start + 8]
            or small.count(0, now.stop, fatbin.stop) < fatbin.stop - now.stop
        ):
            raise NotReadable(f"the fatbin at byte {fatbin.start} has other bytes before or behind its code")
        at = fatbin.stop
        code = [bytes(small[one.start : one.end]) for one in now.entries]
        needed = usable(fatbin.entries, architecture)
        counts["fatbins"] += 1
        counts["without code for it"] += not needed
        for one in needed:
            if bytes(whole[one.start : one.end]) in code:
                what = "kept"
                code.remove(bytes(whole[one.start : one.end]))
            elif is_left_out(whole, one, left_out):
                what = "left out"
            else:
                raise NotReadable(f"the code for sm_{one.architecture} at byte {one.start} is missing or changed")
            counts[what] += 1
            counts[f"bytes {what}"] += one.end - one.start
        if code:
            raise NotReadable(
                f"the fatbin at byte {fatbin.start} has code that is not needed, or is not in the whole one"
            )
    if small[at:end] != whole[at:end]:
        raise NotReadable("it differs behind its last fatbin")
    return counts
