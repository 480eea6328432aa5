"""Providers and steps of the back end ``cuda`` with settings that `open_model` leaves as they are."""

from coupled_sampling.backends.ort import cuda
from coupled_sampling.backends.place import Place, Wanted
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.methods import find_method


def cuda_provider(bundle, rows=1, *, on_device=False, cpu_nodes="shapes", column_buckets=(), trees=False, **place):
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    wanted = Wanted(opened, Place("cuda", **place), rows, step="kernels" if on_device else "host", trees=trees)
    return cuda.open_provider(wanted, cuda.CudaOptions(cpu_nodes, column_buckets))


def cuda_step(bundle, method, rows=1, *, warped=False, guidance=1.0, cpu_nodes="shapes", **place):
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    wanted = Wanted(opened, Place("cuda", **place), rows, find_method(method), "graph", guidance, warped)
    return cuda.open_step(wanted, cuda.CudaOptions(cpu_nodes))
