"""The whole fit: samples, a first table, samples decoded with it, the tables, and what they do on samples kept apart.

1. A few samples are decoded without corrections, and a first table is fitted to them.
2. More are decoded with that table: what a corrector will be asked is what comes up while one is used.
3. A table is fitted to all of them. It serves acceptance by match and by rejection, and is stored for each.
4. If it is asked for, a network is fitted on top of the table.
5. Further samples, which nothing saw, tell how far the tables are off and how many tokens a pass commits.

Each sample's pairs are a file of a working folder, so that a fit that was stopped goes on where it was. The same settings on the
same machine give the same tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from coupled_sampling.arguments import check_count, checked_tokens, shown
from coupled_sampling.backends.ort.network_correction import NetworkCorrection
from coupled_sampling.backends.ort.session import open_session, require_onnxruntime
from coupled_sampling.bundles.correction_tables import CorrectionTables, fingerprint, neighbour_lags
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.corrections import Corrector, LowRank
from coupled_sampling.decoding import Decoder
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import require_onnx
from coupled_sampling.fields import check_fields, check_is, check_path
from coupled_sampling.fitting.counting import Counting
from coupled_sampling.fitting.low_rank import Loss, Optimiser, divergence, fit_low_rank
from coupled_sampling.fitting.network import NetworkOptimiser, fit_network, require_torch
from coupled_sampling.fitting.pairs import Pairs, Recording, thinned
from coupled_sampling.fitting.work import MOST_SAMPLES, Sample, WorkFolder
from coupled_sampling.plain_corrections import KeptAverages, RunningAverages

__all__ = ["CorrectionFit", "FitSettings", "fit_corrections"]

_APART = 2
"""The stage of samples that nothing saw, after the first samples and the others."""

_FIRST = 40
"""Samples before the first table, at most."""

_METHODS = {"match": "scd-match", "rejection": "scd-maximal"}
"""By use, the method that its table is tried with."""

_PLAIN_BYTES = 2**20
"""Of averages that go into a bundle, as they are learned; a bundle of a large vocabulary gets none."""
_PLAIN_VOCABULARY = 2048

Report = Callable[[str, int, int], object]
"""Told what is being done, how much of it was done since the last call, and how much it is in all."""


@dataclass(frozen=True)
class FitSettings:
    """How much to decode for a fit, and how to fit.

    Parameters
    ----------
    samples
        Samples decoded with a first table; up to 40 more come before that. 40 give a third of the gain, 160 two thirds; 10 do harm.
    apart
        Samples that nothing is fitted or chosen on, to tell what the tables do.
    loss
        "tv" or "kl", see `fit_low_rank`. On pictures "tv" gave 3 to 4 % more tokens per pass, for acceptance by match, too.
    seed
        Of the fit and, scrambled, of all samples: nobody decodes with that noise by chance, of which a table knows a little.
    most_bytes
        Memory for pairs; where all do not fit, some of each sample are taken at random. A quarter as much again is for those of the
        sample that is being decoded.
    optimiser
        See `Optimiser`.
    network
        How to fit a network on top of the table, see `NetworkOptimiser`; None fits none. It wants some 500 samples.

    Examples
    --------
    >>> from coupled_sampling.fitting import FitSettings
    >>> FitSettings(samples=520).apart
    20
    """

    samples: int = 160
    apart: int = 20
    loss: str = "tv"
    seed: int = 1
    most_bytes: int = 2**30
    optimiser: Optimiser = field(default_factory=Optimiser)
    network: NetworkOptimiser | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("samples", "apart"):
            check_count(f"fit: {name}", getattr(self, name))
            if getattr(self, name) > MOST_SAMPLES:
                raise InvalidArgument(f"{name} is {getattr(self, name)}, expected at most {MOST_SAMPLES}")
        check_count("fit: most_bytes", self.most_bytes)
        if self.samples < 2:
            raise InvalidArgument(
                f"samples is {self.samples}, expected at least 2: one of them is kept apart from the fit"
            )
        if self.loss not in ("kl", "tv"):
            raise InvalidArgument(f"loss is {self.loss!r}, expected 'kl' or 'tv'")
        if not 0 <= self.seed < 2**64:
            raise InvalidArgument(f"seed is {self.seed}, expected an integer in [0, 2**64)")

    @property
    def first(self) -> int:
        """Samples before the first table."""
        return min(_FIRST, self.samples)


class CorrectionFit(NamedTuple):
    """What a fit made.

    Examples
    --------
    See `fit_corrections`; both parts go to `coupled_sampling.bundles.write_corrections`.

    >>> from coupled_sampling.fitting import CorrectionFit
    >>> CorrectionFit._fields
    ('tables', 'provenance')
    """

    tables: CorrectionTables
    provenance: dict[str, Any]
    """By use, how it was fitted and what it does on samples kept apart: JSON."""


def fit_corrections(
    provider: LogitsProvider,
    bundle: Bundle,
    decoding: DecodingSettings,
    prompts: Sequence[Sequence[int]],
    work: str | Path,
    *,
    settings: FitSettings | None = None,
    report: Report | None = None,
) -> CorrectionFit:
    """Fit the tables of a model.

    Parameters
    ----------
    provider
        The model. It is decoded one sequence at a time.
    bundle
        What it was opened from.
    decoding
        How samples are decoded: temperature, guidance and all that shapes the law are those that the tables are for.
    prompts
        What samples begin with, taken in turn.
    work
        A folder for what was decoded so far; made if it is not there. A fit that was stopped goes on from it.
    settings
        Default `FitSettings()`.
    report
        Told how far it is.

    Raises
    ------
    InvalidArgument
        A prompt cannot be decoded, temperature is 0, the window is "auto" or one slot, or samples have no pairs.
    MissingDependency
        A network is asked for, and ``torch``, ``onnx`` or ``onnxruntime`` is not installed.
    OutputError
        ``work`` holds another fit, is used by another run, or cannot be written.

    Examples
    --------
    Far too few samples and steps to be of use:

    >>> from pathlib import Path
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends import open_model
    >>> from coupled_sampling.fitting import FitSettings, Optimiser, fit_corrections
    >>> bundle = open_bundle("fashion")
    >>> few = FitSettings(samples=2, apart=1, optimiser=Optimiser(rank=2, steps=2))
    >>> with open_model(bundle) as model:
    ...     fit = fit_corrections(model, bundle, bundle.settings(window=32), [(263,)], Path("fashion.fitting"), settings=few)
    >>> fit.tables.lags, sorted(fit.tables.fitted)
    ((1, 14), ['match', 'rejection'])
    """
    for name, value, kind in (
        ("provider", provider, LogitsProvider),
        ("bundle", bundle, Bundle),
        ("decoding", decoding, DecodingSettings),
        ("settings", settings, FitSettings | None),
    ):
        check_is(name, value, kind)
    work, chosen = check_path("work", work), settings or FitSettings()
    if chosen.network is not None:
        require_torch(), require_onnx(), require_onnxruntime()
    if provider.vocab_size != bundle.manifest.vocab_size:
        raise InvalidArgument(
            f"provider has {provider.vocab_size} tokens, and the bundle {bundle.manifest.name} {bundle.manifest.vocab_size}; open "
            "it from this bundle"
        )
    if decoding.sampling.temperature == 0:
        raise InvalidArgument(
            "temperature is 0: all samples of a prompt would be one; fit at temperature 1, the tables serve below it, too"
        )
    if isinstance(decoding.window, str) or decoding.window < 2:
        raise InvalidArgument(
            f"window is {decoding.window!r}, expected a number of slots from 2 on: no law is looked at twice in a narrower one, "
            "and a fit has to be the same every time"
        )
    if not isinstance(prompts, Sequence) or not prompts:
        raise InvalidArgument(f"prompts is {shown(prompts)}, expected what samples begin with: sequences of tokens")
    prompts = [
        checked_tokens(f"prompts[{i}]", prompt, provider.vocab_size).tolist() for i, prompt in enumerate(prompts)
    ]
    return _Fitting(provider, bundle, decoding, prompts, work, chosen, report or (lambda *_: None)).run()


class _Fitting:
    def __init__(
        self,
        provider: LogitsProvider,
        bundle: Bundle,
        decoding: DecodingSettings,
        prompts: Sequence[Sequence[int]],
        work: Path,
        settings: FitSettings,
        report: Report,
    ) -> None:
        self._decoding, self._prompts, self._settings, self._report = decoding, prompts, settings, report
        self._bundle, self._manifest = bundle, bundle.manifest
        self._lags = neighbour_lags(self._manifest)
        generated = self._manifest.generated_tokens
        self._first = generated.first
        self._keeps_averages = self._manifest.vocab_size <= _PLAIN_VOCABULARY
        self._model = Recording(
            provider,
            self._lags,
            generated.first,
            generated.count,
            committed=self._keeps_averages,
            most_bytes=settings.most_bytes // 4,
        )
        self._work = WorkFolder(work, len(self._lags), generated.count)

    def run(self) -> CorrectionFit:
        with self._work.opened(self._identity()):
            table, averages, network = self._fitted()
            ways: dict[str, Corrector | None] = {"none": None, "plain": averages, "fitted": table}
            if network is not None:
                ways["network"] = NetworkCorrection(open_session(network, threads=1), table)
            provenance = {use: self._tried(use, table, ways) for use in _METHODS}
        plain = {} if averages is None else averages.state()
        return CorrectionFit(CorrectionTables(dict.fromkeys(_METHODS, table), plain, network), provenance)

    def _fitted(self) -> tuple[LowRank, KeptAverages | None, bytes | None]:
        """The table, the averages of the committed laws, and the network."""
        vocab_size = self._manifest.vocab_size
        averages = None
        if self._keeps_averages:
            averages = RunningAverages(self._lags, vocab_size, most_bytes=max(_PLAIN_BYTES, 4 * vocab_size))
        early = self._samples("first samples", 0, None, averages)
        table = self._fit("first table", early)
        late = self._samples("samples", 1, table, averages)
        table = self._fit("table", [*early, *late])
        network = self._fit_network([*early, *late], table)
        return table, None if averages is None else averages.kept(), network

    def _fit(self, what: str, parts: Sequence[Pairs]) -> LowRank:
        optimiser = replace(self._settings.optimiser, seed=self._settings.seed)
        return fit_low_rank(
            parts,
            self._lags,
            vocab_size=self._manifest.vocab_size,
            first=self._first,
            loss=cast(Loss, self._settings.loss),
            temperature=self._decoding.sampling.temperature,
            optimiser=optimiser,
            progress=lambda count: self._report(what, count, optimiser.steps),
        )[0]

    def _fit_network(self, parts: Sequence[Pairs], table: LowRank) -> bytes | None:
        optimiser = self._settings.network
        if optimiser is None:
            return None
        steps = optimiser.steps
        return fit_network(
            parts,
            table,
            first=self._first,
            loss=cast(Loss, self._settings.loss),
            temperature=self._decoding.sampling.temperature,
            optimiser=replace(optimiser, seed=self._settings.seed),
            progress=lambda count: self._report("network", count, steps),
        )[0]

    def _tried(self, use: str, table: LowRank, ways: Mapping[str, Corrector | None]) -> dict[str, Any]:
        """How the table was fitted, and what it does on samples that nothing saw."""
        settings, method = self._settings, _METHODS[use]
        rates: dict[str, float] = {}
        corrections: dict[str, float] = {}
        pairs: list[Pairs] = []
        for way, corrector in ways.items():
            if corrector is None and way != "none":
                continue
            tokens = passes = 0
            counting = None if corrector is None else Counting(corrector)
            for index in range(settings.apart):
                made = self._decode(method, _APART, index, counting)
                tokens, passes = tokens + made.tokens, passes + made.passes
                if way == "fitted":  # what the table is asked where it is used
                    pairs.append(made.pairs)
                self._report(f"{use} with {way}", 1, settings.apart)
            rates[way] = round(tokens / passes, 3)
            if counting is not None:
                corrections[way] = round(counting.count / passes, 1)
        temperature = self._decoding.sampling.temperature
        before, after = (divergence(one, pairs, self._first, temperature) for one in (None, table))
        return {
            "loss": settings.loss,
            "method": method,
            "window": self._decoding.window,
            "temperature": temperature,
            "guidance": self._decoding.guidance,
            "guidance_interval": self._decoding.guidance_interval,
            "samples": settings.first + settings.samples,
            "seed": settings.seed,
            "rank": int(table.basis.shape[1]),
            **({} if settings.network is None else {"network": asdict(replace(settings.network, seed=settings.seed))}),
            "apart": {
                "samples": settings.apart,
                "tokens_per_pass": rates,
                "corrections_per_pass": corrections,
                "kl": [round(before.kl, 4), round(after.kl, 4)],
                "tv": [round(before.tv, 4), round(after.tv, 4)],
            },
        }

    def _samples(
        self, what: str, stage: int, corrections: Corrector | None, averages: RunningAverages | None
    ) -> list[Pairs]:
        """The pairs of a stage's samples, from their files where these are there; ``averages`` learn of each."""
        count, parts = self._settings.samples if stage else self._settings.first, []
        for index in range(count):
            sample = self._work.read(stage, index)
            if sample is None:
                sample = self._decode(_METHODS["rejection"], stage, index, corrections)
                self._work.write(stage, index, sample)
            parts.append(sample.pairs)
            if averages is not None:
                self._learn(averages, sample)
            self._report(what, 1, count)
        return parts

    def _learn(self, averages: RunningAverages, sample: Sample) -> None:
        vocab_size = self._manifest.vocab_size
        logits = np.full((len(sample.laws), vocab_size), -np.inf, np.float32)
        logits[:, self._first : self._first + sample.laws.shape[1]] = sample.laws
        averages.learn(logits, np.where(sample.neighbours < 0, vocab_size, sample.neighbours))

    def _decode(self, method: str, stage: int, index: int, corrections: Corrector | None) -> Sample:
        """Decode one sample; its noise is that of no other stage."""
        prompt = self._prompts[index % len(self._prompts)]
        settings = replace(self._decoding, method=method)
        decoder = Decoder(self._model, **settings.decoder, corrections=corrections)
        sequence = (stage << 32) + index
        decoder.add(settings.request(prompt, seed=_scrambled(self._settings.seed), sequence=sequence))
        tokens, passes = [np.asarray(prompt, np.int64)], 0
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                if commit.error is not None:
                    raise commit.error
                tokens.append(commit.tokens)
                passes = commit.trace.nfe
        whole = np.concatenate(tokens)
        generator = np.random.default_rng([self._settings.seed, stage, index])
        together = self._settings.apart if stage == _APART else self._settings.first + self._settings.samples
        pairs = thinned(self._model.pairs(whole, generator), self._settings.most_bytes // together, generator)
        neighbours, laws = self._model.committed(whole, len(prompt))
        return Sample(pairs, neighbours, laws.astype(np.float16), passes, len(whole) - len(prompt))

    def _identity(self) -> str:
        """What its samples depend on."""
        told = {
            "model": fingerprint(self._bundle.folder, self._manifest, self._lags),
            "decoding": {name: str(value) for name, value in vars(self._decoding).items()},
            "prompts": [list(map(int, prompt)) for prompt in self._prompts],
            "settings": {name: value for name, value in asdict(self._settings).items() if name != "network"},
        }
        return json.dumps(told, sort_keys=True, indent=1)


def _scrambled(seed: int) -> int:
    """A seed that nobody would choose: a table must not be used on noise that it was made from."""
    return int.from_bytes(hashlib.sha256(f"coupled-sampling fit-corrections {seed}".encode()).digest()[:8], "big")
