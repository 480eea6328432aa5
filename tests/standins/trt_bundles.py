"""A small random bundle for the TensorRT tests, and providers of it on the stand-ins."""

import contextlib
import functools
import os
from unittest import mock

import numpy as np

from coupled_sampling.backends import Place
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.trt import BuildOptions, TrtProvider, TrtStep
from coupled_sampling.backends.trt.flavour import Flavour
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.export.step_bundle import write_other_writings, write_step_graphs
from standins.fake_kernels import EmulatedCuda
from standins.fake_tensorrt import FakeTensorRT
from standins.toy_bundles import toy_gpt, write_toy_bundle

LENGTH = 40


def write_bundle(path, *, max_window=LENGTH, change=None, seed=0, steps=(), trees=False, storage=None):
    """A bundle at ``path`` with weights of ``seed``; ``change`` may spoil its graph; step graphs for the methods ``steps``.

    With these, or with ``trees``, it has a graph for trees.
    """
    settings = {"max_window": max_window, "change": change, "seed": seed, "storage": storage}
    write_toy_bundle(path, toy_gpt(LENGTH, cache_length=LENGTH + 4), **settings)
    if steps:
        write_step_graphs(path, steps)
    elif trees:
        write_other_writings(path, open_bundle(path).manifest)
    return path


def adding(values):
    """A change of a graph: ``values`` {token: number} are added to its logits."""

    def change(model):
        import onnx

        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[list(last.output).index("logits")] = "right"
        added = np.zeros(11, np.float32)
        added[list(values)] = list(values.values())
        model.graph.initializer.append(onnx.numpy_helper.from_array(added, "added"))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "added"], ["logits"], name="adding"))

    return change


EQUAL = {2: 2.0**40, 5: 2.0**40}
"""What makes the two largest logits equal: whatever they were is rounded away."""


@functools.cache
def bindings(folder):
    from standins.trt_behind import Behind

    return Behind(folder)


def behind_bindings(flavour, stand_in):
    """``stand_in`` behind the real bindings in the folder that TENSORRT_BEHIND names, if they are of ``flavour``."""
    folder = os.environ.get("TENSORRT_BEHIND")
    if not folder or bindings(folder).flavour != flavour:
        return stand_in
    return bindings(folder).module(stand_in)


class Machine:
    """A computer with a GPU and TensorRT, both stand-ins."""

    def __init__(self, *, flavour="tensorrt", cuda=None, **options):
        self.cuda = cuda or EmulatedCuda()
        self.trt = FakeTensorRT(self.cuda, rtx=flavour == "tensorrt-rtx", **options)
        self.flavour = Flavour(flavour, self.trt.__version__, behind_bindings(flavour, self.trt))

    @contextlib.contextmanager
    def used(self):
        """While it lasts, it is this computer that models are opened on."""
        runner = "coupled_sampling.backends.trt.runner"
        with (
            mock.patch(f"{runner}.find_flavour", return_value=self.flavour),
            mock.patch(f"{runner}.Device", lambda index: Device(index, bindings=self.cuda)),
        ):
            yield

    def open(
        self, bundle, *, rows=3, windows=(1, 4, 16), columns=(), on_device=False, engines=None, progress=None, **options
    ):
        chosen = BuildOptions(row_buckets=(rows,), window_buckets=windows, column_buckets=columns, **options)
        place = Place(self.flavour.name, engines=engines)
        with self.used():
            return TrtProvider.open(bundle, place, chosen, on_device=on_device, progress=progress)

    def open_step(self, bundle, *, rows=3, windows=(1, 4, 16), columns=(), engines=None, **options):
        """A `TrtStep`; ``cuda`` must have its emulator."""
        chosen = BuildOptions(row_buckets=(rows,), window_buckets=windows, column_buckets=columns, **options)
        with self.used():
            return TrtStep.open(bundle, Place(self.flavour.name, engines=engines), chosen)


def starts(*values):
    return np.array(values, np.int64)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)
