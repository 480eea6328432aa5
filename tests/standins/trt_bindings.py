"""The real Python bindings of TensorRT, without TensorRT: what is in them, and what they make of our calls.

The package ``tensorrt_bindings`` (wheel ``tensorrt_cu13_bindings``) is TensorRT's Python module. TensorRT itself, ``libnvinfer``,
is in another package and need not be there: the module asks it for nine C functions, so libraries of its name with these are
compiled here (`trt_library.cpp`) and take its place. They build and run nothing. ``tensorrt_rtx_bindings`` is taken so, too.

A process can load one such module only, so each is looked at in a process of its own: ``python trt_bindings.py FOLDER`` writes
`describe` as JSON.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from standins.builds import built

SOURCE = Path(__file__).with_name("trt_library.cpp")
PACKAGES = {"tensorrt": "tensorrt_bindings", "tensorrt-rtx": "tensorrt_rtx_bindings"}
VALUE, OBJECT, DIMENSIONS, NAMES = range(4)
"""Kinds of answers, as in `trt_library.cpp`."""


def folders():
    """By flavour and version, the folders of packages: what is installed, and what lies in those that TENSORRT_BINDINGS names."""
    found = {}
    named = [Path(part) for part in os.environ.get("TENSORRT_BINDINGS", "").split(os.pathsep) if part]
    for flavour, package in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        installed = [Path(spec.origin).parent] if spec is not None and spec.origin else []
        for folder in (*installed, *(part / package for part in named if (part / package).is_dir())):
            text = (folder / "__init__.py").read_text(encoding="utf-8")
            version = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)[1]
            found[f"{flavour} {version}"] = str(folder)
    return found


def why_not():
    """Why the bindings cannot be loaded here, "" if they can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the libraries in place of TensorRT's are for Linux on x86-64"
    if shutil.which("g++") is None:
        return "g++ is not installed, which compiles libraries in place of TensorRT's"
    return ""


class Library:
    """What takes the place of ``libnvinfer``: it returns what it was told to."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self._library.answer.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p]
        self._library.fix.argtypes = [ctypes.c_uint64]
        self._kept = []

    def answers(self, *answers):
        """The next calls return these ``(kind, value, words)``, and the calls after them the last."""
        self._library.forget()
        for kind, value, words in answers:
            array = (ctypes.c_uint64 * len(words))(*(word & (1 << 64) - 1 for word in words))
            self._kept.append(array)
            self._library.answer(kind, value & (1 << 64) - 1, ctypes.addressof(array))

    @property
    def calls(self):
        """Methods called since `answers`."""
        return self._library.count()

    @contextlib.contextmanager
    def fixed(self, *gets):
        """In the block, the method called by each of ``gets``, pairs of a function and a value, returns that value."""
        for get, value in gets:
            self.answers((VALUE, value, ()))
            get()
            self._library.fix(value)
        yield
        self._library.free_all()

    @functools.cache  # noqa: B019 - kept as long as the process
    def text(self, text):
        """Address of a C string, which stays."""
        self._kept.append(ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(self._kept[-1])


def build_libraries(names):
    """A folder with libraries called ``names``, of which the first has the functions."""
    command = ["g++", "-shared", "-fPIC", "-O1", "-std=c++17"]

    def compile_in(folder):
        first, *others = [folder / name for name in names]
        subprocess.run([*command, SOURCE, "-o", first, f"-Wl,-soname,{first.name}"], check=True)
        for path in others:  # their functions are those of the first, so that there is one queue of answers
            nothing = ["-x", "c", "/dev/null", "-x", "none", first]
            subprocess.run(["g++", "-shared", "-o", path, f"-Wl,-soname,{path.name}", *nothing], check=True)

    return built((command, SOURCE.read_text("utf-8"), names), compile_in)


def load(folder):
    """The module that is the package in ``folder``, and the `Library` beneath it."""
    package = Path(folder).name
    (binary,) = Path(folder).glob("tensorrt*.so")
    needed = sorted(set(re.findall(rb"lib(?:nv|tensorrt_)\w+\.so\.\d+", binary.read_bytes())))
    sys.path.insert(0, str(Path(folder).parent))
    sys.modules[package.replace("bindings", "libs")] = None  # TensorRT itself, which the package would load
    paths = [build_libraries(tuple(name.decode() for name in needed)) / name.decode() for name in needed]
    library = Library(str(paths[0]))
    for path in paths[1:]:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    module = importlib.import_module(package)
    return module, library


def parts(text):
    """``text`` cut at commas that are in no bracket."""
    depth, found = 0, [""]
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found if part.strip()]


def bare(name):
    """The last part of a type's name: "IBuilder" of "nvinfer1::IBuilder" and of "tensorrt_bindings.tensorrt.IBuilder"."""
    found = re.split(r"::|\.", name.strip())[-1]
    return {"IParserError": "ParserError"}.get(found, found)


def signature(line):
    """A signature in the form of pybind11, as a dictionary: parameters after self, and what is returned."""
    inside, _, returned = line.partition("(")[2].rpartition(" -> ")
    parameters = []
    for part in parts(inside.strip().removesuffix(")"))[1:]:
        name, _, rest = part.partition(":")
        kind, has_default, _ = rest.partition(" = ")
        parameters.append({"name": name, "type": bare(kind), "optional": bool(has_default)})
    return {"parameters": parameters, "returns": bare(returned)}


def signatures(document):
    """The signatures at the head of a docstring of pybind11, of each overload."""
    lines = (document or "").strip().splitlines()
    if lines and lines[0].endswith("(*args, **kwargs)"):
        return [signature(line) for line in lines if re.match(r"\d+\. \w+\(", line)]
    return [signature(lines[0])] if lines and " -> " in lines[0] else []


def describe(module):
    """What is in ``module``, as JSON takes it: version, enumerations, and classes with their methods and properties."""
    enumerations, classes = {}, {}
    for name, found in vars(module).items():
        if not isinstance(found, type):
            continue
        if hasattr(found, "__members__"):
            enumerations[name] = {member: int(value) for member, value in found.__members__.items()}
            continue
        members = {}
        for owner in reversed(found.__mro__[:-1]):
            for member, value in vars(owner).items():
                if isinstance(value, property):
                    read = signatures(value.fget.__doc__)
                    members[member] = {
                        "returns": read[0]["returns"] if read else None,
                        "settable": value.fset is not None,
                    }
                elif callable(value) and (not member.startswith("_") or member == "__init__"):
                    members[member] = {"signatures": signatures(value.__doc__)}
        classes[name] = members
    return {"version": module.__version__, "enumerations": enumerations, "classes": classes}


def problems(used, described):
    """What of ``used`` the bindings ``described`` do not have, in words.

    Parameters
    ----------
    used
        Lists (class or enumeration, member, use): use is "get", "set", or the number of arguments of a call.
    described
        Of `describe`.
    """
    found = []
    for owner, member, use in used:
        place = f"{owner}.{member}"
        if owner in described["enumerations"]:
            found += [] if member in described["enumerations"][owner] else [f"{place} is no member"]
            continue
        known = described["classes"].get(owner, {}).get(member)
        if known is None:
            found.append(f"there is no {place}")
        elif isinstance(use, int):
            counts = [
                range(sum(not one["optional"] for one in taken), len(taken) + 1)
                for taken in (one["parameters"] for one in known.get("signatures", ()))
            ]
            if not any(use in allowed for allowed in counts):
                found.append(f"{place} does not take {use} arguments")
        elif "signatures" in known:
            found.append(f"{place} is a method")
        elif use == "set" and not known["settable"]:
            found.append(f"{place} cannot be set")
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        loaded, _ = load(sys.argv[1])
    print(json.dumps(describe(loaded)))
