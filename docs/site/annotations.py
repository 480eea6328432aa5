"""The type and default that the reference shows beside each documented parameter: its own.

Docstrings here name parameters together where they belong together ("window, drafting, sampling"). Griffe then gives all of them
the type of the first one.
"""

from __future__ import annotations

from typing import Any

import griffe


class OwnAnnotations(griffe.Extension):
    """Looks up each documented parameter in the signature."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Once everything is loaded."""
        self._correct(pkg)

    def _correct(self, owner: griffe.Object) -> None:
        if owner.docstring is not None and isinstance(owner, griffe.Function | griffe.Class):
            for section in owner.docstring.parsed:
                if isinstance(section, griffe.DocstringSectionParameters):
                    for shown in section.value:
                        own = next((p for p in owner.parameters if p.name == shown.name.lstrip("*")), None)
                        if own is not None:
                            shown.annotation, shown.default = own.annotation, own.default
        for member in owner.members.values():
            if isinstance(member, griffe.Object):
                self._correct(member)
