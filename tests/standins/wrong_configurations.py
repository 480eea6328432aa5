"""Every key of a configuration with every wrong value: refused by a checkpoint's error, or taken; never anything else, and soon."""

import contextlib
import copy
import signal

from coupled_sampling.errors import CheckpointError, InvalidArgument

WRONG = (
    None, True, False, -1, 0, 1, 3, 2**20 + 1, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, -1.0, 1e308, float("inf"), float("nan"),
    "", "x", "16", "\ud800", [], {}, [[]], [0], [1] * 5000, [2**31 - 1], ["x"], [None], {"": 0}, {"x": None},
    {"rope_type": "linear"},
)  # fmt: skip
PATIENCE = 10
IDENTITY = ("model_type", "architectures")
"""Held against their types by what reads the file, before any family is asked."""


def places(config, before=()):
    """The keys of a configuration and of those in it; of large tables the first and the last."""
    found = []
    items = list(config.items())
    for key, value in items if len(items) <= 24 else (items[0], items[-1]):
        if before or key not in IDENTITY:
            found.append((*before, key))
            if isinstance(value, dict):
                found += places(value, (*before, key))
    return found


def what_goes_wrong(config, load):
    """What ``load`` does with every wrong configuration that it should not: places, values and exceptions."""
    wrong = []
    for place in places(config):
        for value in WRONG:
            changed = copy.deepcopy(config)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = value
            try:
                with _soon():
                    load(changed)
            except (CheckpointError, InvalidArgument) as error:
                if len(str(error)) > 2000:
                    wrong.append((place, f"{value!r:.40}", "a message of pages"))
            except Exception as error:
                wrong.append((place, f"{value!r:.40}", f"{type(error).__name__}: {error}"[:150]))
    return wrong


@contextlib.contextmanager
def _soon():
    def late(*_):
        raise TimeoutError(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
