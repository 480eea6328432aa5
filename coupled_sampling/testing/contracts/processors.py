"""Does a logits processor keep its contract? For the author of one, before it decodes anything.

::

    from coupled_sampling.testing import check_processor

    print(check_processor(MyPenalty(1.2), vocab_size=1000))     # raises CheckFailed with every failure by name
    print(processor_report(MyPenalty(1.2), vocab_size=1000))    # never raises for a failure

Under drafts a processor is asked for several slots at once, in front of tokens that may be refused later. One that looks at them
changes the law of what is generated, and nothing else would show it. `coupled_sampling.testing.contracts.processor_checks` holds
the checks by name and says how contexts are made.

What they cannot see: a processor that is wrong in the same way everywhere, such as one that counts the prompt where it should not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Required, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import is_floating, to_host
from coupled_sampling.contracts import Array, Processor, SequenceProcessor
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import (
    check_callable,
    check_count,
    check_prompts,
    check_seed,
    check_tokens,
    check_tolerance,
    shown,
)
from coupled_sampling.testing.contracts import processor_checks as checks
from coupled_sampling.testing.contracts.probe import Record
from coupled_sampling.testing.contracts.processor_checks import Subject
from coupled_sampling.testing.contracts.report import CheckFailed, CheckResult, Report

__all__ = ["PROCESSOR_CHECKS", "check_processor", "processor_report"]


class Check(NamedTuple):
    """A check, and what a failure of it usually means."""

    run: Callable[[Subject, Record], None]
    advice: str


PROCESSOR_CHECKS: dict[str, Check] = {
    "runs": Check(
        checks.runs,
        "It must take any context that it allows; if it wants certain prompts, pass them as prompts",
    ),
    "input-untouched": Check(
        checks.input_untouched,
        "Make a new array, by where() or a copy; the model or another slot may use what was given",
    ),
    "shape-and-type": Check(
        checks.shape_and_type, "Return floating logits (slots, vocabulary) of the library they came in"
    ),
    "allows-something": Check(
        checks.allows_something,
        "A request that comes here ends with an error. Allow a token, or a stop token and pass it as stop, or pass prompts that it "
        "allows and a length that it can reach",
    ),
    "causal": Check(
        checks.causal,
        "It looks right of the slot, at drafts that may be refused: for slot j use tokens[:positions[j]], never tokens[-1]",
    ),
    "slots-alone": Check(
        checks.slots_alone,
        "Slots are mixed up: the context of slot j ends at positions[j], and its logits are logits[j]",
    ),
    "call-order": Check(
        checks.call_order,
        "It depends on the order of calls, by state that it keeps, or draws random numbers: make it a function of its arguments. "
        "Drafts come and go, and sequences take turns",
    ),
    "result-kept": Check(
        checks.result_kept, "It returns memory that it writes to again: return a new array every time"
    ),
}
"""Every check by name, in the order in which they run: what others rely on comes first."""

_RELIED_ON = ("runs", "shape-and-type")
"""Where one of these fails there is nothing for the others to look at."""


class ProcessorSettings(TypedDict, total=False):
    """All keywords of `processor_report`."""

    vocab_size: Required[int]
    prompts: Sequence[Sequence[int]] | None
    length: int
    stop: Sequence[int]
    array: Callable[[NDArray[Any]], Array] | None
    tolerance: float
    seed: int


def processor_report(
    processor: Processor | SequenceProcessor,
    *,
    vocab_size: int,
    prompts: Sequence[Sequence[int]] | None = None,
    length: int = 12,
    stop: Sequence[int] = (),
    array: Callable[[NDArray[Any]], Array] | None = None,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> Report:
    """What every check found. Failures are in the report, none is raised.

    Parameters
    ----------
    processor
        A `coupled_sampling.contracts.Processor`, or what makes one for a sequence.
    vocab_size
        V.
    prompts
        What sequences begin with; by default two of random tokens. Give your own if the processor does not allow all.
    length
        Tokens to generate after each prompt. The processor must allow one at each of them, or a stop token before.
    stop
        Tokens that end a sequence.
    array
        Makes the logits that the processor wants of numpy's float32, such as ``torch.asarray``; None for numpy.
    tolerance
        Largest difference of log-probabilities that passes.
    seed
        Chooses logits and tokens.

    Returns
    -------
    Report
        One result per check. After a failure of ``runs`` or ``shape-and-type`` no other check is run.

    Raises
    ------
    InvalidArgument
        An argument cannot work; the message names it.

    Examples
    --------
    >>> from coupled_sampling.processors import RepetitionPenalty
    >>> from coupled_sampling.testing import processor_report
    >>> processor_report(RepetitionPenalty(1.2), vocab_size=50).passed
    True
    """
    vocab_size, length, seed = (
        check_count("vocab_size", vocab_size),
        check_count("length", length),
        check_seed("seed", seed),
    )
    if not isinstance(processor, SequenceProcessor):
        check_callable("processor", processor, 3)
    if array is not None:
        _check_array(array, vocab_size)
    if prompts is None:
        random = np.random.default_rng([seed, 1])
        begins = [random.integers(vocab_size, size=count) for count in (1, 4)]
    else:
        begins = [np.array(prompt, np.int64) for prompt in check_prompts("prompts", prompts, vocab_size)]
    tolerance, ends = float(check_tolerance("tolerance", tolerance)), check_tokens("stop", stop, vocab_size)
    subject = Subject(processor, vocab_size, begins, length=length, stop=frozenset(ends), array=array, seed=seed)
    name = getattr(processor, "__name__", type(processor).__name__)
    return Report(name, tolerance, tuple(_results(subject, tolerance)))


def _check_array(array: Any, vocab_size: int) -> None:
    """Refuse an ``array`` that makes no logits of numpy's."""
    check_callable("array", array, 1)
    try:
        made = array(np.zeros((1, vocab_size), np.float32))
        right = tuple(made.shape) == (1, vocab_size) and is_floating(made) and to_host(made).shape == (1, vocab_size)
    except Exception as error:  # a stranger's code: anything may come
        raise InvalidArgument(
            f"array cannot be used: {type(error).__name__}: {error}; expected one like torch.asarray"
        ) from error
    if not right:
        raise InvalidArgument(
            f"array made {shown(made)} of numpy's logits, expected an array of their shape; one like torch.asarray"
        )


def _results(subject: Subject, tolerance: float) -> list[CheckResult]:
    results = []
    for name, check in PROCESSOR_CHECKS.items():
        record = Record(name, check.advice, tolerance)
        try:
            check.run(subject, record)
        except Exception as error:  # a stranger's code: anything may come
            record.fail(f"it raised {type(error).__name__}: {error}")
        results.append(record.result())
        if name in _RELIED_ON and record.failure is not None:
            break
    return results


def check_processor(processor: Processor | SequenceProcessor, **settings: Unpack[ProcessorSettings]) -> Report:
    """`processor_report`, raising if anything failed. Parameters are the same.

    Raises
    ------
    CheckFailed
        A check failed: an AssertionError that lists all failures by name.
    InvalidArgument
        As for `processor_report`.

    Examples
    --------
    A penalty that counts all tokens it is shown, drafts to the right of the slot among them:

    >>> import numpy as np
    >>> from coupled_sampling.testing import check_processor
    >>> def penalty(logits, tokens, positions):
    ...     return logits - np.bincount(tokens, minlength=logits.shape[-1])
    >>> check_processor(penalty, vocab_size=5)
    Traceback (most recent call last):
    coupled_sampling.testing.contracts.report.CheckFailed: penalty fails ...
    """
    report = processor_report(processor, **settings)
    if not report.passed:
        raise CheckFailed(report)
    return report
