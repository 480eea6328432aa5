"""Who a model belongs to: one decoder at a time, and a decoder to one thread.

A model holds the state of the sequences that one decoder works on. A second decoder may take it over, between two steps, and the
first one then knows: its next step raises instead of going on with somebody else's state.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from coupled_sampling.contracts import Wraps
from coupled_sampling.errors import InvalidArgument, NotOwner

__all__ = ["Ownership", "innermost"]

# By identity: a provider need not be hashable. An owner keeps its models alive, so none of these can be another object's.
_OWNERS: weakref.WeakValueDictionary[int, Ownership] = weakref.WeakValueDictionary()


def innermost(model: Any) -> Any:
    """The model under whatever wraps it, such as guidance or a step.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.ownership import innermost
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 4), 4)
    >>> innermost(HostStep(model)) is model
    True
    """
    while isinstance(model, Wraps):
        model = model.provider
    return model


class Ownership:
    """What a decoder owns: its ``models``, by name, and its thread from the first step on.

    Raises
    ------
    InvalidArgument
        One model has two names: a model cannot draft for itself in the same memory.
    """

    def __init__(self, **models: Any) -> None:
        self._models = {name: innermost(model) for name, model in models.items()}
        self._thread: int | None = None
        seen: dict[int, str] = {}
        for name, model in self._models.items():
            if id(model) in seen:
                raise InvalidArgument(
                    f"the {name} is the same object as the {seen[id(model)]}, and both would write one memory; open it twice"
                )
            seen[id(model)] = name

    def take(self, in_progress: bool) -> bool:
        """Take the models, before a step; false if somebody else had them since the last one.

        Parameters
        ----------
        in_progress
            Whether sequences are under way whose state the models hold.

        Raises
        ------
        NotOwner
            The step comes from a second thread, or another decoder has taken a model over while sequences are under way.
        """
        thread = threading.get_ident()
        if self._thread not in (None, thread):
            raise NotOwner(
                f"step was called from thread {thread}, but this decoder belongs to thread {self._thread}, which called it first; "
                "step from one thread. add, remove and check may come from any"
            )
        lost = {name: model for name, model in self._models.items() if _OWNERS.get(id(model)) is not self}
        if lost and in_progress:
            name, model = next(iter(lost.items()))
            raise NotOwner(
                f"the {name} ({type(model).__name__}) was taken over by another decoder, and the state of the sequences under way "
                "is lost; open the model twice, or finish one decoder, stream or generate before the next begins"
            )
        self._thread = thread
        for model in lost.values():
            _OWNERS[id(model)] = self
        return not lost
