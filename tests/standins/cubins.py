"""What NVRTC compiles is compiled once per run, for tests that use it in processes of their own: ``-p standins.cubins`` or `keep`.

The same kernels for the same device take two to three seconds of every process. A cubin is found by sources and options, so that
a test which changes one of them still compiles.
"""

import functools

import pytest

from coupled_sampling.backends.cuda import compile as compiling
from standins.builds import built


def keep(monkeypatch):
    """Have `compile_kernels` take what another process of this run has compiled."""
    compile_now = compiling._compile

    @functools.wraps(compile_now)
    def compiled(nvrtc, sources, options, source="decision.cu"):
        made_of = ("cubin", nvrtc.nvrtcVersion(), sources, options, source)
        folder = built(
            made_of, lambda folder: (folder / "cubin").write_bytes(compile_now(nvrtc, sources, options, source))
        )
        return (folder / "cubin").read_bytes()

    monkeypatch.setattr(compiling, "_compile", compiled)


@pytest.fixture(autouse=True, scope="session")
def _cubins_are_kept():
    with pytest.MonkeyPatch.context() as patch:
        keep(patch)
        yield
