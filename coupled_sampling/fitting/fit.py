"""The whole fit: samples, a first table, samples decoded with it, the tables, and what they do on samples kept apart.

1. A few samples are decoded without corrections, and a first table is fitted to them.
2. More are decoded with that table: what a corrector will be asked is what comes up while one is used.
3. A table is fitted for each use: one for acceptance by match, one for rejection.
4. Further samples, which nothing saw, tell how far the tables are off and how many tokens a pass commits.

Each sample's pairs are a file of a working folder, so that a fit that was stopped goes on where it was. The same settings on the
same machine give the same tables.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count
from coupled_sampling.bundles.correction_tables import CorrectionTables, fingerprint, neighbour_lags
from coupled_sampling.bundles.files import write_whole
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.contracts import Integers, LogitsProvider
from coupled_sampling.corrections import Corrector, LowRank
from coupled_sampling.decoding import Decoder
from coupled_sampling.errors import InvalidArgument, OutputError
from coupled_sampling.fields import check_fields
from coupled_sampling.fitting.low_rank import Divergence, Loss, Optimiser, divergence, fit_low_rank
from coupled_sampling.fitting.pairs import Pairs, Recording, joined, thinned
from coupled_sampling.plain_corrections import KeptAverages, RunningAverages

__all__ = ["CorrectionFit", "FitSettings", "fit_corrections"]

_FIRST = 40
"""Samples before the first table, at most."""

_METHODS = {"match": "scd-match", "rejection": "scd-maximal"}
"""By use, the method that its table is tried with."""

_LOSSES: dict[str, Loss] = {"match": "kl", "rejection": "tv"}

_PLAIN_BYTES = 2**20
"""Of averages that go into a bundle, as they are learned; a bundle of a large vocabulary gets none."""
_PLAIN_VOCABULARY = 2048

_NAME = "fit.json"
"""What a working folder is of."""

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
        "kl" or "tv" for both tables; None is "kl" for match, "tv" for rejection.
    seed
        Of all samples and of the fit. Decode with another one afterwards: a table knows a little of the noise it was made from.
    most_bytes
        Memory for pairs; where all do not fit, some of each sample are taken at random.
    optimiser
        See `Optimiser`.

    Examples
    --------
    >>> from coupled_sampling.fitting import FitSettings
    >>> FitSettings(samples=520).apart
    20
    """

    samples: int = 160
    apart: int = 20
    loss: str | None = None
    seed: int = 1
    most_bytes: int = 2**30
    optimiser: Optimiser = field(default_factory=Optimiser)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("samples", "apart"):
            check_count(f"fit: {name}", getattr(self, name))
        check_count("fit: most_bytes", self.most_bytes)
        if self.samples < 2:
            raise InvalidArgument(
                f"samples is {self.samples}, expected at least 2: one of them is kept apart from the fit"
            )
        if self.loss not in (None, "kl", "tv"):
            raise InvalidArgument(
                f"loss is {self.loss!r}, expected 'kl', 'tv', or None for the one that suits each use"
            )
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


class _Sample(NamedTuple):
    """What one decoded sample leaves."""

    pairs: Pairs
    neighbours: Integers
    """(n, K) of the committed positions, and their log-laws (n, M); empty where no averages are kept."""
    laws: NDArray[np.floating]
    passes: int
    tokens: int


def fit_corrections(
    provider: LogitsProvider,
    bundle: Bundle,
    decoding: DecodingSettings,
    prompts: Sequence[Sequence[int]],
    work: Path,
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
        A prompt cannot be decoded, temperature is 0, or samples have no pairs.
    OutputError
        ``work`` holds another fit, or cannot be written.

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
    chosen = settings or FitSettings()
    if decoding.sampling.temperature == 0:
        raise InvalidArgument(
            "temperature is 0: all samples of a prompt would be one; fit at temperature 1, the tables serve below it, too"
        )
    if not prompts:
        raise InvalidArgument("prompts is empty, expected what samples begin with")
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
        self._model = Recording(provider, self._lags, generated.first, generated.count)
        self._keeps_averages = self._manifest.vocab_size <= _PLAIN_VOCABULARY
        self._work = work
        self._open_work()

    def run(self) -> CorrectionFit:
        settings = self._settings
        early = self._samples("first samples", 0, settings.first, None)
        table, _ = self._fit("first table", [sample.pairs for sample in early], "tv")
        late = self._samples("samples", 1, settings.samples, table)
        pairs = [sample.pairs for sample in (*early, *late)]
        losses = {use: settings.loss or loss for use, loss in _LOSSES.items()}
        fitted: dict[str, LowRank] = {}
        for use, loss in losses.items():
            same = next((other for other in fitted if losses[other] == loss), None)
            fitted[use] = fitted[same] if same else self._fit(f"table for {use}", pairs, loss)[0]
        averages = self._averages([*early, *late])
        provenance = {use: self._tried(use, losses[use], fitted[use], averages) for use in fitted}
        plain = {} if averages is None else averages.state()
        return CorrectionFit(CorrectionTables(fitted, plain), provenance)

    def _fit(self, what: str, parts: Sequence[Pairs], loss: Any) -> tuple[LowRank, Divergence]:
        optimiser = replace(self._settings.optimiser, seed=self._settings.seed)
        return fit_low_rank(
            parts,
            self._lags,
            vocab_size=self._manifest.vocab_size,
            first=self._first,
            loss=loss,
            temperature=self._decoding.sampling.temperature,
            optimiser=optimiser,
            progress=lambda count: self._report(what, count, optimiser.steps),
        )

    def _tried(self, use: str, loss: str, table: LowRank, averages: KeptAverages | None) -> dict[str, Any]:
        """How a table was fitted, and what it does on samples that nothing saw."""
        settings, method = self._settings, _METHODS[use]
        rates: dict[str, float] = {}
        ways: dict[str, Corrector | None] = {"none": None, "plain": averages, "fitted": table}
        pairs: list[Pairs] = []
        for way, corrector in ways.items():
            if corrector is None and way != "none":
                continue
            made = [
                self._decode(method, 2, i, corrector, f"{use} with {way}", settings.apart)
                for i in range(settings.apart)
            ]
            rates[way] = round(sum(one.tokens for one in made) / sum(one.passes for one in made), 3)
            pairs = [one.pairs for one in made]
        held = joined(pairs)
        temperature = self._decoding.sampling.temperature
        before, after = (divergence(one, held, self._first, temperature) for one in (None, table))
        return {
            "loss": loss,
            "method": method,
            "window": self._decoding.window,
            "temperature": temperature,
            "guidance": self._decoding.guidance,
            "samples": settings.first + settings.samples,
            "seed": settings.seed,
            "rank": int(table.basis.shape[1]),
            "apart": {
                "samples": settings.apart,
                "tokens_per_pass": rates,
                "kl": [round(before.kl, 4), round(after.kl, 4)],
                "tv": [round(before.tv, 4), round(after.tv, 4)],
            },
        }

    def _averages(self, samples: Sequence[_Sample]) -> KeptAverages | None:
        if not self._keeps_averages:
            return None
        vocab_size = self._manifest.vocab_size
        averages = RunningAverages(self._lags, vocab_size, most_bytes=max(_PLAIN_BYTES, 4 * vocab_size))
        for sample in samples:
            logits = np.full((len(sample.laws), vocab_size), -np.inf, np.float32)
            logits[:, self._first : self._first + sample.laws.shape[1]] = sample.laws
            averages.learn(logits, np.where(sample.neighbours < 0, vocab_size, sample.neighbours))
        return averages.kept()

    def _samples(self, what: str, stage: int, count: int, corrections: Corrector | None) -> list[_Sample]:
        """The samples of a stage, from their files where these are there."""
        made = []
        for index in range(count):
            path = self._work / f"sample-{stage}-{index:05}.npz"
            sample = _read(path) if path.exists() else None
            if sample is None:
                sample = self._decode(_METHODS["rejection"], stage, index, corrections, None, count)
                _write(path, sample)
            made.append(sample)
            self._report(what, 1, count)
        return made

    def _decode(
        self, method: str, stage: int, index: int, corrections: Corrector | None, what: str | None, count: int
    ) -> _Sample:
        """Decode one sample; its noise is that of no other stage."""
        prompt = self._prompts[index % len(self._prompts)]
        settings = replace(self._decoding, method=method)
        decoder = Decoder(self._model, **settings.decoder, corrections=corrections)
        sequence = (stage << 32) + index
        decoder.add(settings.request(prompt, seed=self._settings.seed, sequence=sequence))
        tokens, passes = [np.asarray(prompt, np.int64)], 0
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                if commit.error is not None:
                    raise commit.error
                tokens.append(commit.tokens)
                passes = commit.trace.nfe
        whole = np.concatenate(tokens)
        generator = np.random.default_rng([self._settings.seed, stage, index])
        most = self._settings.most_bytes // (self._settings.first + self._settings.samples)
        pairs = thinned(self._model.pairs(whole, generator), most, generator)
        neighbours, laws = self._model.committed(whole, len(prompt))
        if not self._keeps_averages:
            neighbours, laws = neighbours[:0], laws[:0]
        if what is not None:
            self._report(what, 1, count)
        return _Sample(pairs, neighbours, laws.astype(np.float16), passes, len(whole) - len(prompt))

    def _open_work(self) -> None:
        """Make the working folder, or see that it is of this very fit."""
        decoding = {name: str(value) for name, value in vars(self._decoding).items()}
        told = {
            "model": fingerprint(self._bundle.folder, self._manifest, self._lags),
            "decoding": decoding,
            "prompts": [list(map(int, prompt)) for prompt in self._prompts],
            "settings": asdict(self._settings),
        }
        text = json.dumps(told, sort_keys=True, indent=1)
        path = self._work / _NAME
        try:
            held = path.read_text() if path.exists() else None
            self._work.mkdir(parents=True, exist_ok=True)
            others = held is None and any(self._work.iterdir())
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"cannot use {self._work} as a working folder: {error}; name another") from error
        if others:
            raise OutputError(f"{self._work} is there and holds no fit; name another folder")
        if held not in (None, text):
            raise OutputError(
                f"{self._work} holds another fit, of other settings or another model; name another folder, or remove it"
            )
        if held is None:
            write_whole(path, lambda partial: partial.write_text(text))


def remove_work(work: Path) -> None:
    """Remove the working folder of a fit that is done: our own files, and the folder if nothing else is in it."""
    if (work / _NAME).exists():
        for path in (*work.glob("sample-?-?????.npz"), work / _NAME):
            path.unlink(missing_ok=True)
        if not any(work.iterdir()):
            shutil.rmtree(work)


def _write(path: Path, sample: _Sample) -> None:
    arrays = {**sample.pairs._asdict(), "neighbours": sample.neighbours, "laws": sample.laws}
    counts = np.array([sample.passes, sample.tokens], np.int64)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, counts=counts, **arrays)

    write_whole(path, write)


def _read(path: Path) -> _Sample | None:
    """A sample's file; None where it is damaged: then it is decoded again."""
    try:
        with np.load(path, allow_pickle=False) as held:
            pairs = Pairs(*(held[name] for name in Pairs._fields))
            passes, tokens = held["counts"].tolist()
            return _Sample(pairs, held["neighbours"], held["laws"], passes, tokens)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
