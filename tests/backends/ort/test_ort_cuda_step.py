"""The step graph on CUDA: `OrtStep` on the stand-in of `fake_onnxruntime`, beside itself on the CPU.

Nothing ran on a GPU; the tests marked ``gpu`` do, where there is one.
"""

import copy

import numpy as np
import pytest

from coupled_sampling import Decoder, Request, Sampling, generate
from coupled_sampling.backends import Place, open_model
from coupled_sampling.backends.ort import cuda_session
from coupled_sampling.backends.ort.device_binding import DeviceBinding
from coupled_sampling.backends.ort.step_state import AlternatingLaws
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import Runs
from coupled_sampling.errors import InvalidArgument, MissingDependency, ProviderError
from coupled_sampling.export.graphs.decision import STEP_METHODS
from standins.fake_cuda import RuleBroken
from standins.on_a_gpu import opened
from standins.on_cuda import cuda_step

onnxruntime = pytest.importorskip("onnxruntime")
fake_onnxruntime = pytest.importorskip("standins.fake_onnxruntime")

CUDA = "CUDAExecutionProvider"
VOCAB = 267
REJECTING = ["sjd", "scd-maximal", "scd-gumbel"]
VARIANTS = {"plain": {}, "warped": {"warped": True}, "guided": {"warped": True, "guidance": 1.5}}
CUTS = [Sampling(0.8, top_p=0.9), Sampling(top_k=20, min_p=0.02), Sampling(0)]
PROMPTS = [[256], [258], [260]]


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("fashion")


@pytest.fixture
def runtime(monkeypatch):
    """What puts a `FakeRuntime` where the step imports its own."""

    def install(**settings):
        fake = fake_onnxruntime.FakeRuntime(**settings)
        monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
        return fake

    return install


def on_the_cpu(bundle, method, rows, **settings):
    return open_model(bundle, Place(threads=1), rows, method=method, step="graph", corrections="none", **settings)


def tokens(step, **settings):
    settings = {"length": [50, 30, 41], "window": 12, "drafting": "copy:14", "seed": 3, **settings}
    return [row.tolist() for row in generate(step, PROMPTS, **settings).tokens]


@pytest.mark.cases(5)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_tokens_are_those_of_the_cpu(bundle, runtime, method, variant):
    """Rows end at different times and others take their place, so numbers of rows and widths change under way."""
    fake, settings = runtime(), VARIANTS[variant]
    step = cuda_step(bundle, method, 2, **settings)
    sampling = {"sampling": CUTS} if settings else {}
    expected = tokens(on_the_cpu(bundle, method, 2, **settings), **sampling)
    assert tokens(step, **sampling) == expected
    assert fake.sessions[0].runs > 10
    assert len({tuple(row) for row in expected}) == 3


def largest(width, rows):
    """Bytes of the largest array that may cross: ``uniforms``."""
    return 24 * rows * width


def most(width, rows, steps):
    """Bytes that may cross in ``steps`` steps besides noise, as the module's page says."""
    return steps * (53 * rows * width + 106 * rows + 16)


@pytest.mark.cases(5)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_nothing_is_allocated_and_nothing_large_crosses_once_warm(bundle, runtime, method, variant):
    fake, settings = runtime(), VARIANTS[variant]
    step = cuda_step(bundle, method, 3, **settings)
    sampling = {"sampling": CUTS} if settings else {}
    tokens(step, **sampling)
    session, before = fake.sessions[0], fake.sessions[0].runs
    fake.warm(largest(12, 3))
    tokens(step, seed=4, **sampling)
    steps = session.runs - before
    noise = fake.crossed.pop("noise", 0)
    assert 0 < sum(fake.crossed.values()) <= most(12, 3, steps)
    assert "fetched" not in fake.crossed
    if method in ("sjd", "scd-maximal"):
        assert noise == 0


@pytest.mark.parametrize("method", ["ar", "scd-gumbel", "scd-match"])
def test_the_noise_of_a_position_crosses_once(bundle, runtime, method):
    fake = runtime()
    step = cuda_step(bundle, method)
    positions = []
    original = step._tensors.put_noise
    step._tensors.put_noise = lambda window, own: positions.extend(range(*own[0])) or original(window, own)
    tokens_of = generate(step, [[258]], length=60, window=12, drafting="repeat", seed=1).tokens[0]
    assert len(tokens_of) == 60
    assert positions == list(range(1, 61))
    # In steps where none entered, the weights of one position fill the place.
    filled = fake.crossed["noise"] // (4 * VOCAB) - len(positions)
    assert 0 <= filled < fake.sessions[0].runs
    assert method != "ar" or filled == 0


def test_a_wider_window_is_not_warm(bundle, runtime):
    """The control for the tests above: that the stand-in refuses."""
    fake = runtime()
    step = cuda_step(bundle, "scd-gumbel", 3)
    tokens(step)
    fake.warm(largest(13, 3))
    with pytest.raises(RuleBroken, match="allocated on the device although all is warm"):
        tokens(step, window=13)
    fake.warm(largest(12, 3) - 1)
    with pytest.raises(RuleBroken, match="864 bytes of uniforms cross, more than 863"):
        tokens(step, window=12)


@pytest.mark.parametrize("method", REJECTING)
def test_laws_written_over_while_they_are_read_are_caught(bundle, runtime, monkeypatch, method):
    runtime()
    step = cuda_step(bundle, method)

    def one_buffer(self, source, rows, width):
        self.buffers[0] = self.buffers[1] = (
            self._room(width) if self.buffers[0].size < width * VOCAB else self.buffers[0]
        )
        for name in ("draft_laws", "laws"):
            self._binding.bind_kept(name, self.buffers[0], (len(rows), width, VOCAB))

    monkeypatch.setattr(AlternatingLaws, "bind", one_buffer)
    with pytest.raises(ProviderError, match="laws is written over draft_laws"):
        generate(step, [[256]], length=20, window=6)


def test_inputs_are_bound_anew_in_every_call(bundle, runtime, monkeypatch):
    """Bound once, as on the CPU, the graph would go on with the first call's tokens."""
    runtime()
    expected = tokens(on_the_cpu(bundle, "scd-match", 3))
    own, bound = DeviceBinding.bind_input, {}

    def once(self, name, values):
        if bound.get(name) != (key := (values.shape, values.ctypes.data)):
            bound[name] = key
            own(self, name, values)

    monkeypatch.setattr(DeviceBinding, "bind_input", once)
    try:
        found = tokens(cuda_step(bundle, "scd-match", 3))
    except (InvalidArgument, IndexError, ProviderError):
        return  # counts of another step took the loop astray, or a window's own width was never bound
    assert found != expected


@pytest.mark.parametrize("method", [*REJECTING, "scd-match"])
def test_interruptions_change_nothing(bundle, runtime, method):
    """An outcome lost on the way to the loop, or after the loop took those of some rows: laws of two rounds are put together."""
    fake = runtime()

    def tokens_of(step, lost):
        decoder = Decoder(step, window=8, drafting="repeat")
        handles = [decoder.add(Request([256 + i], 40, sequence=i)) for i in range(2)]
        found, calls = {handle: [] for handle in handles}, 0
        while decoder.active or decoder.waiting:
            calls += 1
            row = decoder._rows[0]
            saved = copy.copy(row)
            if saved:
                saved.tokens = row.tokens.copy()
            commits = decoder.step()
            if lost and calls % 4 == 3 and saved and decoder._rows[0] is not None:
                decoder._rows[0] = saved
                commits = [commit for commit in commits if commit.handle != saved.handle]
            for commit in commits:
                found[commit.handle].extend(commit.tokens.tolist())
        return found

    expected = tokens_of(on_the_cpu(bundle, method, 2), False)
    assert tokens_of(cuda_step(bundle, method, 2), True) == expected
    assert (fake.crossed["fetched"] > 0) == (method in REJECTING)


def test_a_window_past_the_caches_is_refused_before_it_runs(bundle, runtime):
    """On CUDA it would be written to the last columns without an error."""
    fake = runtime()
    step = cuda_step(bundle, "scd-match")
    decoder = Decoder(step, window=6, drafting="repeat")
    decoder.add(Request([256], 20))
    windows, own = [], step.step
    step.step = lambda window: windows.append(window) or own(window)
    decoder.step()
    (window,) = windows
    runs = fake.sessions[0].runs
    last = step.max_length - window.tokens.shape[1]
    with pytest.raises(InvalidArgument, match=f"row 0 starts at {last + 1}, expected 0 to {last}"):
        step.step(window._replace(start=np.array([last + 1])))
    assert fake.sessions[0].runs == runs


def test_it_opens_as_providers_do(bundle, runtime):
    fake = runtime()
    step = open_model(bundle, Place("cuda", threads=3), 2, method="sjd", step="graph")
    assert step.runs == Runs(CUDA, 0, step="graph")
    assert set(step.binding.on_cpu) == {"Slice", "Concat"}
    (session,) = fake.sessions
    assert session.providers == [(CUDA, {"device_id": "0", "use_tf32": "0"})]
    assert session.options.intra_op_num_threads == 3


def test_nodes_on_the_cpu_are_refused(bundle, runtime):
    runtime(on_cpu=("Concat", "TensorScatter", "ArgMax"))
    with pytest.raises(
        ProviderError, match=r"no CUDA kernel for .*step-sjd.onnx.*ArgMax \(\d+\), TensorScatter \(12\); install"
    ):
        cuda_step(bundle, "sjd")
    assert cuda_step(bundle, "sjd", cpu_nodes="any").binding.on_cpu["TensorScatter"] == 12
    with pytest.raises(ProviderError, match="cpu_nodes='none' forbids"):
        cuda_step(bundle, "sjd", cpu_nodes="none")
    runtime(used="CPUExecutionProvider")
    with pytest.raises(ProviderError, match="on CPUExecutionProvider, expected CUDAExecutionProvider"):
        cuda_step(bundle, "sjd")


def test_a_package_without_cuda_is_refused(bundle):
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    with pytest.raises(MissingDependency, match=r"built without CUDA.*coupled-sampling\[gpu\]"):
        open_model(bundle, Place("cuda"), method="sjd", step="graph")


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_on_a_gpu_tokens_are_those_of_the_cpu(bundle, method, variant):
    """But for ties: a GPU's sums and exponentials differ in their last bits, and after a tie a sequence goes its own way."""
    settings = VARIANTS[variant]
    step = opened(lambda: cuda_step(bundle, method, 2, **settings))
    sampling = {"sampling": CUTS} if settings else {}
    expected = tokens(on_the_cpu(bundle, method, 2, **settings), **sampling)
    found = tokens(step, **sampling)
    print(
        dict(step.binding.on_cpu),
        [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(found, expected, strict=True)],
    )
    assert set(step.binding.on_cpu) <= cuda_session.SHAPE_OPERATORS
    assert sum(x == y for x, y in zip(found, expected, strict=True)) >= 2
