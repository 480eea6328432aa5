"""Reading small files of strangers: manifests, configurations, headers, tokenizers.

Such a file is read whole before anything in it can be checked, and JSON takes some thirty times its size as objects. So how
large each kind may be is said here, in one place, with room above the largest that real models have; a file that is larger, that
is no regular file, or that two readers could understand differently is refused before anybody believes it.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from coupled_sampling.errors import BundleError, CoupledSamplingError

__all__ = [
    "CHAT_TEMPLATE",
    "CONDITION",
    "CONFIGURATION",
    "CORRECTIONS_FILE",
    "CORRECTION_NETWORK",
    "GGUF_HEADER",
    "INDEX_OF_SHARDS",
    "MANIFEST_FILE",
    "PICKLE_OF_TENSORS",
    "SAFETENSORS_HEADER",
    "TOKENIZER",
    "SmallFile",
    "read_json_text",
    "read_object",
    "read_small",
    "read_text",
]


class SmallFile(NamedTuple):
    """A kind of file that is read whole."""

    name: str
    """What it is, with its article, for messages."""
    most: int
    """Bytes of the largest that is read."""
    remedy: str = "copy or download it again"
    """What to do about one that cannot be read."""
    halves: bool = False
    """Whether its texts may have halves of surrogate pairs, which is how Python has names of files that are no Unicode."""

    def check_size(self, size: int, path: Path, refusal: type[CoupledSamplingError]) -> None:
        """Raise ``refusal`` if ``size``, in bytes, is too much."""
        if size > self.most:
            raise refusal(
                f"{path} has {size} bytes of {_without_article(self.name)}, and {self.most} are the most that is read of "
                f"{self.name}; {self.remedy}"
            )


_MIB = 2**20

MANIFEST_FILE = SmallFile("a manifest", 4 * _MIB, "copy or export the bundle again", halves=True)
CHAT_TEMPLATE = SmallFile("a chat template", 4 * _MIB, halves=True)
CONDITION = SmallFile("a condition's vectors", 256 * _MIB, "write them with numpy.save")
CONFIGURATION = SmallFile("a configuration", 16 * _MIB)
CORRECTIONS_FILE = SmallFile("a file of corrections", 1024 * _MIB, "copy it again, or fit it again")
CORRECTION_NETWORK = SmallFile("a correction network", 1024 * _MIB, "copy it again, or fit it again")
INDEX_OF_SHARDS = SmallFile("an index of shards", 32 * _MIB)
TOKENIZER = SmallFile("a tokenizer", 48 * _MIB)
SAFETENSORS_HEADER = SmallFile("a safetensors header", 32 * _MIB)
GGUF_HEADER = SmallFile("a GGUF header", 48 * _MIB)
PICKLE_OF_TENSORS = SmallFile("a pickle of tensors' names and places", 4 * _MIB, "save the model's state_dict alone")

MOST_VALUES = 4_000_000
"""Values in a JSON file: each takes 70 bytes or more of memory, and may take three in the file."""

MOST_LEVELS = 64
"""Of objects and lists in each other: whatever walks through them calls itself for each."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_small(path: Path, kind: SmallFile, refusal: type[CoupledSamplingError] = BundleError) -> bytes:
    """The bytes of a file that may not be larger than its ``kind``.

    Parameters
    ----------
    path
        The file. A link is followed; a device, a pipe and a folder are refused, which might never end.
    kind
        What it is.
    refusal
        The class of the errors.

    Raises
    ------
    BundleError
        Or ``refusal``: it is missing, no regular file, too large, or cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling.bundles.json_files import MANIFEST_FILE, read_small
    >>> _ = Path("manifest.json").write_text("{}")
    >>> read_small(Path("manifest.json"), MANIFEST_FILE)
    b'{}'
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise refusal(f"{path} is a folder, a device or a pipe, expected {kind.name}; {kind.remedy}")
        kind.check_size(found.st_size, path, refusal)
        with path.open("rb") as file:
            content = file.read(found.st_size + 1)  # as much memory as it has bytes, and not as much as it may have
            if len(content) > found.st_size:
                content += file.read(kind.most + 1 - len(content))
    except FileNotFoundError as error:
        raise refusal(f"{path} is missing, expected {kind.name}; {kind.remedy}") from error
    except OSError as error:  # a loop of links, no permission
        raise refusal(f"{path} cannot be read ({error.strerror}), expected {kind.name}; {kind.remedy}") from error
    kind.check_size(len(content), path, refusal)  # some files say 0 and have more, those of /proc for instance
    return content


def read_text(path: Path, kind: SmallFile, refusal: type[CoupledSamplingError] = BundleError) -> str:
    """The text of a file in UTF-8; parameters and errors as of `read_small`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling.bundles.json_files import CHAT_TEMPLATE, read_text
    >>> _ = Path("chat_template.jinja").write_text("{{ messages }}")
    >>> read_text(Path("chat_template.jinja"), CHAT_TEMPLATE)
    '{{ messages }}'
    """
    content = read_small(path, kind, refusal)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(
            f"{path} is not readable as text in UTF-8, from byte {error.start} on, expected {kind.name}; {kind.remedy}"
        ) from error


def read_json_text(path: Path, kind: SmallFile, refusal: type[CoupledSamplingError] = BundleError) -> str:
    """The text of a file of JSON that another library parses; parameters and errors as of `read_small`.

    Raises
    ------
    BundleError
        Or ``refusal``: it has more values than anything real, for each of which that library makes an object.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling.bundles.json_files import TOKENIZER, read_json_text
    >>> _ = Path("tokenizer.json").write_text('{"version": "1.0"}')
    >>> read_json_text(Path("tokenizer.json"), TOKENIZER)
    '{"version": "1.0"}'
    """
    text = read_text(path, kind, refusal)
    values = text.count(",") + text.count("[") + text.count("{")  # in texts, too: there are at most so many
    if values > MOST_VALUES:
        raise refusal(
            f"{path} has up to {values} values, and {MOST_VALUES} are the most that is read of {kind.name}; {kind.remedy}"
        )
    return text


def read_object(path: Path, kind: SmallFile, refusal: type[CoupledSamplingError] = BundleError) -> dict[str, Any]:
    """The object in a file of JSON; parameters and errors as of `read_small`.

    Raises
    ------
    BundleError
        Or ``refusal``: it is no JSON, or no object; it has numbers that are none, a key twice, half of a surrogate pair, or more
        values or levels than anything real.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling.bundles.json_files import CONFIGURATION, read_object
    >>> _ = Path("config.json").write_text('{"vocab_size": 32}')
    >>> read_object(Path("config.json"), CONFIGURATION)
    {'vocab_size': 32}
    >>> _ = Path("config.json").write_text('{"vocab_size": 32, "vocab_size": 64}')
    >>> read_object(Path("config.json"), CONFIGURATION)
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: config.json is not readable JSON ('vocab_size' occurs twice in one object)...
    """
    text = read_json_text(path, kind, refusal)
    try:
        found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
        if not kind.halves and _SURROGATE.search(text):
            json.dumps(
                found, ensure_ascii=False
            ).encode()  # a half cannot be encoded, nor printed, nor be a file's name
    except UnicodeEncodeError as error:
        raise refusal(
            f"{path} has half of a surrogate pair in a text, expected {kind.name} in Unicode; {kind.remedy}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path} is not readable JSON ({error}), expected {kind.name}; {kind.remedy}") from error
    if not isinstance(found, dict):
        raise refusal(f"{path} holds a {type(found).__name__}, expected a JSON object: {kind.name}; {kind.remedy}")
    if not _is_shallow(found):
        raise refusal(f"{path} has objects and lists more than {MOST_LEVELS} deep, expected {kind.name}; {kind.remedy}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object; of a key that occurs twice some readers take the first and some the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r:.60} occurs twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _is_shallow(found: Any) -> bool:
    level = [found]
    for _ in range(MOST_LEVELS):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return True
    return False


def _without_article(name: str) -> str:
    return name.partition(" ")[2]
