"""Fitting corrections to a model: its own samples are decoded, and what became of laws is told to a table.

`fit_corrections` does it all; `coupled-sampling fit-corrections` is the command around it. The model itself is never trained.
Nothing here is needed to use a table.
"""

from coupled_sampling.fitting.fit import CorrectionFit, FitSettings, fit_corrections
from coupled_sampling.fitting.low_rank import Optimiser, fit_low_rank
from coupled_sampling.fitting.network import NetworkOptimiser, fit_network
from coupled_sampling.fitting.pairs import Pairs, Recording

__all__ = [
    "CorrectionFit",
    "FitSettings",
    "NetworkOptimiser",
    "Optimiser",
    "Pairs",
    "Recording",
    "fit_corrections",
    "fit_low_rank",
    "fit_network",
]
