"""The stand-in of TensorRT behind TensorRT's real Python bindings: calls go through both.

What our code calls is the bindings' own function, with its own conversion of arguments and results, its enumerations, and its
exceptions; what TensorRT would answer beneath it, the stand-in says. So a name that is not there, an argument that is not taken, or
a result of another form shows, for every call that is made, without TensorRT and without a GPU. What TensorRT really answers does
not show.

``python trt_behind.py FOLDER`` runs `decode` so, with the bindings in FOLDER, and again for each function used, which fails; it
writes as JSON what was used, what each failure became, and what is in the bindings. With TENSORRT_BEHIND=FOLDER every stand-in
that `trt_bundles.Machine` makes is behind the bindings, whichever tests are run.
"""

import contextlib
import ctypes
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from standins.trt_bindings import DIMENSIONS, NAMES, OBJECT, VALUE, describe, load, signatures

FAILURES = {
    "infer_shapes": [(OBJECT, 0, ()), (VALUE, 3, ()), (VALUE, -2, ())],
    "add_optimization_profile": [(VALUE, -1, ())],
}
"""What a failure of a function is, where it is not 0."""


def is_member(value):
    """Whether ``value`` is of one of the bindings' enumerations."""
    return hasattr(type(value), "__members__")


class Behind:
    """The two halves, and what was used of them.

    Attributes
    ----------
    used
        Owner, member and use: "get", "set", or the number of arguments of a call. The values are nothing; the order is kept.
    failing
        (owner, member) that fails: the bindings are told 0.
    """

    def __init__(self, folder):
        self.bindings, self.library = load(folder)
        self.flavour = "tensorrt-rtx" if "rtx" in self.bindings.__name__ else "tensorrt"
        self.used = {}
        self.failing = None
        self.alive = []

    def module(self, stand_in):
        """A module like the bindings, with ``stand_in`` behind it."""
        return Module(self, stand_in)

    def note(self, owner, member, use):
        self.used[owner, member, use] = None

    def through(self, owner, member, ask, call, returns):
        """The result of ``call`` of the bindings, when what they call gives the result of ``ask``, of the stand-in."""
        if self.failing == (owner, member):
            self.library.answers(*FAILURES.get(member, [(VALUE, 0, ())]))
            found = call()
            return self.pair(ask() if returns == "None" else None, found)
        said = ask()
        self.library.answers(*self.answers(member, said, returns))
        return self.pair(said, call())

    def answers(self, member, said, returns):
        """What TensorRT's own methods return, for the bindings to make ``said`` of it."""
        if member == "infer_shapes":
            words = tuple(self.library.text(name) for name in said)
            return [(OBJECT, 0, ()), (VALUE, 64, ()), (NAMES, len(said), words)]
        if said is None:
            # The bindings raise where a function without a result fails.
            return [(VALUE, int(returns == "None"), ())]
        if isinstance(said, int):
            return [(VALUE, said, ())]
        if isinstance(said, str):
            return [(VALUE, self.library.text(said), ())]
        if isinstance(said, tuple):
            return [(DIMENSIONS, len(said), said)]
        kind = getattr(self.bindings, type(said).__name__, None)
        if is_member(said):
            return [(VALUE, int(getattr(kind, said.name)), ())]
        return [(OBJECT, 0, ())]

    def pair(self, said, found):
        """``found`` of the bindings for our code, which must say what the stand-in ``said``."""
        self.alive.append(found)  # nothing is given back to a library that does not know its objects
        if found is None or (isinstance(found, int | str | list) and not is_member(found)):
            if self.failing is None:
                assert found == said, f"the bindings made {found!r} of {said!r}"
            return found
        if is_member(found):
            assert found.name == said.name, f"the bindings made {found} of {said}"
            return found
        if isinstance(found, self.bindings.Dims):
            assert said is None or tuple(found) == said, f"the bindings made {tuple(found)} of {said}"
            return found
        return Both(self, said, found)

    def to_stand_in(self, stand_in, value):
        """``value``, an argument of our code, as the stand-in takes it."""
        if isinstance(value, Both):
            return value.said
        if is_member(value):
            return getattr(getattr(stand_in, type(value).__name__), value.name)
        for kind in (self.bindings.ILogger, self.bindings.IProgressMonitor):
            if isinstance(value, kind):
                return Hooks(self, kind, value)
        return value


class Hooks:
    """A logger or monitor of ours as the stand-in calls it: through the bindings, as TensorRT does."""

    def __init__(self, behind, kind, ours):
        self.behind, self.kind, self.ours = behind, kind, ours

    def __getattr__(self, name):
        def call(*arguments):
            if name == "log":
                arguments = (self.kind.Severity(arguments[0]), *arguments[1:])
            self.behind.note(self.kind.__name__, name, len(arguments))
            return getattr(self.kind, name)(self.ours, *arguments)

        return call


class Module:
    """The bindings' module, as our code sees it."""

    def __init__(self, behind, stand_in):
        self.behind, self.stand_in = behind, stand_in
        stand_in.strongly_typed = int(behind.bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def __getattr__(self, name):
        found = getattr(self.behind.bindings, name)
        if is_member(found) or not isinstance(found, type):
            return found
        if hasattr(found, "__members__"):
            return Enumeration(self.behind, found)
        if name not in ("Builder", "OnnxParser", "Runtime"):
            return found

        def make(*arguments):
            behind = self.behind
            behind.note(name, "__init__", len(arguments))
            ours = [behind.to_stand_in(self.stand_in, one) for one in arguments]
            theirs = [getattr(one, "found", one) for one in arguments]
            made = behind.through(
                name, "__init__", lambda: getattr(self.stand_in, name)(*ours), lambda: found(*theirs), name
            )
            made.stand_in = self.stand_in
            return made

        return make


class Enumeration:
    """An enumeration of the bindings, noting which members are used."""

    def __init__(self, behind, found):
        self.behind, self.found = behind, found

    def __getattr__(self, name):
        self.behind.note(self.found.__name__, name, "get")
        return getattr(self.found, name)


class Both:
    """An object of the bindings with one of the stand-in behind it."""

    def __init__(self, behind, said, found):
        self.__dict__.update(behind=behind, said=said, found=found, stand_in=None)

    def _owner(self):
        return type(self.found).__name__

    def __getattr__(self, name):
        behind, owner, said, found = self.behind, self._owner(), self.said, self.found
        described = getattr(type(found), name)  # as the bindings have it, or AttributeError
        if isinstance(described, property):
            behind.note(owner, name, "get")
            return self._with(
                behind.through(owner, name, lambda: getattr(said, name), lambda: getattr(found, name), None)
            )

        def call(*arguments):
            behind.note(owner, name, len(arguments))
            ours = [behind.to_stand_in(self.stand_in, one) for one in arguments]
            theirs = [getattr(one, "found", one) for one in arguments]
            returns = signatures(described.__doc__)[0]["returns"]
            return self._with(
                behind.through(
                    owner, name, lambda: getattr(said, name)(*ours), lambda: getattr(found, name)(*theirs), returns
                )
            )

        return call

    def _with(self, result):
        if isinstance(result, Both):
            result.__dict__["stand_in"] = self.stand_in
        return result

    def __setattr__(self, name, value):
        if name in self.__dict__:
            self.__dict__[name] = value
        elif name == "__class__":
            self.found.__class__ = value
            self.said.__class__ = getattr(self.stand_in, value.__name__)
        else:
            assert isinstance(getattr(type(self.found), name), property)
            self.behind.note(self._owner(), name, "set")
            setattr(self.said, name, self.behind.to_stand_in(self.stand_in, value))
            self.behind.library.answers((VALUE, 1, ()))
            setattr(self.found, name, value)

    def __bytes__(self):
        content, library = bytes(self.said), self.behind.library
        self.behind.alive.append(content)
        int8 = int(self.behind.bindings.DataType.INT8)
        with library.fixed((lambda: self.found.nbytes, len(content)), (lambda: self.found.dtype, int8)):
            library.answers((VALUE, ctypes.cast(content, ctypes.c_void_p).value, ()))
            found = bytes(self.found)
        assert found == content
        return found


def decode(behind, folder):
    """What a user does: build, decode, prepare, look, close, and open again; and two builds that cannot succeed."""
    from coupled_sampling.backends.trt import EngineError
    from standins.trt_bundles import Machine, some_tokens, starts, write_bundle

    class Paired(Machine):
        def __init__(self, **options):
            super().__init__(flavour=behind.flavour, version=behind.bindings.__version__, **options)
            object.__setattr__(self.flavour, "module", behind.module(self.trt))

    write_bundle(folder / "toy")
    machine = Paired()
    provider = machine.open(folder / "toy", columns=(16,), workspace_bytes=1 << 40, detailed=True)
    for width, start in ((4, 0), (4, 4), (1, 8)):
        provider.forward(some_tokens(2, width), starts(start, start))
    provider.prepare(1)
    assert provider.engine.layers()
    provider.close()
    again = machine.open(folder / "toy", columns=(16,), workspace_bytes=1 << 40, detailed=True, tf32=False)
    logits = again.forward(some_tokens(2, 4), starts(0, 0))
    again.close()
    machine.open(folder / "toy", tf32=True).close()

    def spoil(model):
        model.graph.node[3].op_type, model.graph.node[3].domain = "NotAnOperator", "elsewhere"

    spoilt = write_bundle(folder / "spoilt", change=spoil)
    for unlucky, bundle in ((Paired(), spoilt), (Paired(builds=False), folder / "toy")):
        with contextlib.suppress(EngineError):
            unlucky.open(bundle, optimization_level=2)
    return logits


def main(folder):
    behind = Behind(folder)

    def run():
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as scratch:
            return decode(behind, Path(scratch))

    logits = run()
    used = list(behind.used)
    failures = {}
    for owner, member, use in used:
        if (
            owner in ("ILogger", "IProgressMonitor", "ParserError")
            or use in ("get", "set")
            or member.startswith("get_")
        ):
            continue
        behind.failing = (owner, member)
        try:
            np.testing.assert_array_equal(run(), logits)
            failures[f"{owner}.{member}"] = "nothing"
        except Exception as error:
            failures[f"{owner}.{member}"] = f"{type(error).__name__}: {error}"
    return {"used": used, "failures": failures, "described": describe(behind.bindings)}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        report = main(sys.argv[1])
    print(json.dumps(report))
