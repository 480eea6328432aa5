"""Worlds, a step that asks both HostStep and the kernels, and the kernels called by hand."""

import numpy as np

from coupled_sampling import Decoder, HostStep, Request, Sampling
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import DECISION, DRAWS, ROW, decide, method_codes, scratch_bytes
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.corrections import LowRank
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import TableProvider, random_table
from standins.cuda_emulation.emulation import SANITIZED, DeviceProvider, EmulationLauncher

WARPED = [
    Sampling(0.7, top_k=3),
    Sampling(1.3, top_p=0.8, min_p=0.05),
    Sampling(0),
    Sampling(top_k=2, top_p=0.6),
    Sampling(0.5, min_p=0.2),
]
PROMPTS = [[0], [1, 1, 0], [0, 1], [1], [1, 0, 1, 0, 1]]


class Float32Table:
    """A table world whose log-laws are float32, as a device's logits are."""

    def __init__(self, vocab_size, batch_size=2, seed=1, zeros=0.2, max_length=64):
        self._inner = TableProvider(random_table(seed, vocab_size, zeros=zeros), vocab_size, batch_size, max_length)
        self.vocab_size, self.batch_size, self.max_length = vocab_size, batch_size, max_length

    def forward(self, tokens, start):
        return self._inner.forward(tokens, start).astype(np.float32)


class NormalWorld:
    """Normal logits that depend on the token before, for vocabularies of any size."""

    def __init__(self, vocab_size, batch_size=1, seed=5, scale=3.0, max_length=300):
        self.vocab_size, self.batch_size, self.max_length = vocab_size, batch_size, max_length
        self._scale = np.float32(scale)
        self._table = np.random.default_rng(seed).standard_normal((7, vocab_size), np.float32) * self._scale

    def forward(self, tokens, start):
        return self._table[tokens % 7]


class BothSteps:
    """A step that asks HostStep and KernelStep, notes where they differ, and goes on with HostStep's outcome."""

    def __init__(self, host, kernels):
        self.host, self.kernels = host, kernels
        self.method, self.noise = host.method, host.noise
        self.vocab_size, self.batch_size = host.vocab_size, host.batch_size
        self.max_length, self.max_window = host.max_length, host.max_window
        self.draws, self.closed, self.failed, self.differences = 0, 0, 0, []

    def takes(self, request):
        return self.host.takes(request) or self.kernels.takes(request)

    @property
    def runs(self):
        return self.kernels.runs

    def close(self):
        self.kernels.close()

    def begin(self, row, request):
        self.host.begin(row, request)
        self.kernels.begin(row, request)

    def step(self, window):
        expected, found = self.host.step(window), self.kernels.step(window)
        self.compared(window, expected, found)
        return expected

    def compared(self, window, expected, found):
        """Note where the outcomes differ."""
        for b in np.flatnonzero(window.draws):
            first = window.known[b] - 1
            end = max(window.end[b], first + expected.committed[b])  # a branch may reach further than the path
            if not self.method.recycles:
                end = first + expected.committed[b]
            self.draws += end - first
            self.closed += int((expected.tokens[b, first:end] < 0).sum())
            for slot in range(first, end):
                pair = int(expected.tokens[b, slot]), int(found.tokens[b, slot])
                if pair[0] != pair[1]:
                    self.differences.append((int(b), slot, *pair))
            if expected.committed[b] != found.committed[b]:
                self.differences.append((int(b), "committed", int(expected.committed[b]), int(found.committed[b])))
        failures = [{b: str(error) for b, error in outcome.failures.items()} for outcome in (expected, found)]
        self.failed += len(failures[0])
        if failures[0] != failures[1]:
            self.differences.append(tuple(failures))


def compare(world, method, options=SANITIZED, *, order=0, replacement=None, processors=132, **settings):
    """Decode with both steps, the kernels emulated; returns the BothSteps."""
    with EmulationLauncher(options, order=order, replacement=replacement) as launcher:
        launcher.processors = processors
        return compare_on(launcher, world, method, **settings)


def compare_on(
    launcher,
    world,
    method,
    *,
    steps=None,
    drafting="repeat",
    prompts=PROMPTS,
    length=30,
    window=8,
    sampling=WARPED,
    corrections=None,
    dtype="float32",
):
    """Decode with both steps, the kernels by ``launcher``; at most ``steps`` steps."""
    provider = DeviceProvider(world(), launcher, dtype)
    kernels = KernelStep(provider, method, launcher, corrections=corrections)
    both = BothSteps(HostStep(world(), method, corrections=corrections), kernels)
    decoder = Decoder(both, window=window, drafting=drafting)
    for i, prompt in enumerate(prompts):
        warp = sampling[i % len(sampling)]
        decoder.add(Request(prompt, length - 4 * i % 20, seed=9, sequence=i, sampling=warp))
    while (decoder.active or decoder.waiting) and steps != 0:
        decoder.step()
        steps = None if steps is None else steps - 1
    kernels.release()  # the launcher may be wanted again
    provider.close()
    assert both.draws > 20
    return both


def noise(launcher, seed, sequence, position, round_, vocab_size):
    """What the kernel ``noise`` gives: uniforms, words, weights."""
    outs = [np.empty(4), np.empty(vocab_size, np.uint64), np.empty(vocab_size, np.float32)]
    pointers = [launcher.allocate(out.nbytes) for out in outs]
    parameters = np.array((seed, sequence, position, round_, vocab_size, *pointers), DRAWS)
    launcher.launch("noise", (3, 1), parameters)
    for pointer, out in zip(pointers, outs, strict=True):
        launcher.download(pointer, out)
        launcher.release(pointer)
    return outs


def decided(launcher, logits, *, dtype=0, tokens=None, method="sjd", sampling=None, parts=0, offset=0, **fields):
    """Run the kernels on logits (W, V): tokens, committed, highest logits, laws; logits begin ``offset`` bytes into memory."""
    width = logits.shape[0]
    vocab_size = logits.shape[1]
    sampling = sampling or Sampling()
    row = np.zeros(1, ROW)
    row["known"], row["fresh"], row["draws"] = 1, width - 1, 1
    row["temperature"], row["top_p"], row["min_p"] = sampling.temperature, sampling.top_p, sampling.min_p
    row["top_k"] = sampling.top_k or 0
    for name, value in fields.items():
        row[name] = value
    given = np.zeros(width, np.int64) if tokens is None else np.asarray(tokens, np.int64)
    outs = [np.empty(width, np.int64), np.empty(1, np.int64), np.empty(width, np.float32)]
    laws = np.zeros((width, vocab_size), np.float32)
    memory = [
        launcher.allocate(size) for size in (logits.nbytes + offset, *(a.nbytes for a in (row, given, *outs, laws)))
    ]
    scratch = launcher.allocate(scratch_bytes(1, width, vocab_size))
    row["laws"] = memory[-1]
    for pointer, array in zip((memory[0] + offset, *memory[1:3]), (logits, row, given), strict=True):
        launcher.upload(pointer, array)
    parameters = np.zeros((), DECISION)
    parameters["logits"], parameters["logits_type"] = memory[0] + offset, dtype
    parameters["width"], parameters["vocab_size"] = width, vocab_size
    parameters["rows"], parameters["tokens_in"] = memory[1:3]
    parameters["redraft"], parameters["acceptance"] = method_codes(METHODS[method])
    parameters["tokens"], parameters["committed"], parameters["highest_logits"] = memory[3:6]
    parameters["scratch"], parameters["parts"] = scratch, parts
    decide(launcher, parameters, 1)
    for pointer, array in zip(memory[3:], (*outs, laws), strict=True):
        launcher.download(pointer, array)
    for pointer in (*memory, scratch):
        launcher.release(pointer)
    return (*outs, laws)


def exact_correction(vocab_size, lags=(1,), rank=3, seed=0):
    """A correction of eighths: whatever the order in which float32 adds its products up, nothing is rounded."""
    random, count = np.random.default_rng(seed), len(lags)

    def eighths(*shape):
        return random.integers(-6, 7, shape) / 8

    scales = random.integers(3, 7, 2**count) / 4, random.integers(-2, 3, 2**count) / 4
    neighbours = eighths(count, vocab_size + 1, rank)
    return LowRank(lags, eighths(vocab_size), eighths(vocab_size, rank), neighbours, *scales)


def tie_ridden_logits(vocab_size, seed):
    """Rows with ties, forbidden tokens, one candidate only, equal tokens, and logits far from zero."""
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal((6, vocab_size)) * 3).astype(np.float32)
    logits[1] = np.round(logits[1])
    logits[2, generator.random(vocab_size) < 0.7] = -np.inf
    logits[2, 0] = 0
    logits[3] = -np.inf
    logits[3, -1] = 5
    logits[4] = 0
    logits[5] = logits[5] * 1e4 - 3e4
    return logits


def window_of(tokens, *, recycled=0, round_=0, fresh=None, sampling=None, laws=None):
    width = len(tokens)
    sampling = sampling or Sampling()
    count = width - 1 - recycled if fresh is None else fresh
    one = [np.array([n]) for n in (0, 1, recycled, count)]
    return Window(
        np.array([tokens]),
        *one,
        np.array([True]),
        np.array([round_]),
        [RowInfo(1, 2, sampling)],
        [np.array(tokens)],
        [laws],
    )
