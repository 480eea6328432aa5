"""Bugs of what reads strangers' files and holds what people pass against what was asked for."""

from planting import Bug

__all__ = ["BUGS"]

ARGUMENTS = ("test_wrong_bundle_arguments", "test_wrong_export_arguments")
CONFIGURATIONS = ("test_families", "test_configurations")

BUGS = (
    Bug(
        "any-number-for-a-size",
        "fields:_plain",
        "kind is int and is_whole(value)",
        "kind is int and isinstance(value, int | float)",
        "A size may be one and a half, or infinite.",
        ARGUMENTS,
    ),
    Bug(
        "items-are-not-looked-at",
        "fields:_items",
        "found = tuple(check_is(f'{name}[{i}]', item, kind) for i, (item, kind) in enumerate(zip(value, each, strict=True)))",
        "found = tuple(value)",
        "A tuple of sizes may hold texts.",
        ARGUMENTS,
    ),
    Bug(
        "sizes-are-believed",
        "require_layers",
        "layers > tensors",
        "False",
        "One integer in a configuration keeps the exporter busy without end.",
        CONFIGURATIONS,
    ),
    Bug(
        "positions-are-believed",
        "choose_positions",
        "(asked or most) > MOST_POSITIONS",
        "False",
        "One integer in a configuration makes tables of gigabytes.",
        CONFIGURATIONS,
    ),
    Bug(
        "truth-is-one",
        "ConfigReader.count",
        "not is_whole(value) or not least <= value <= most",
        "not least <= value <= most",
        "A configuration may say true for one layer, or one and a half.",
        CONFIGURATIONS,
    ),
    Bug(
        "stop-tokens-of-any-kind",
        "take_stop_tokens",
        "not all(is_whole(token) for token in tokens)",
        "False",
        "A text where a token should be is an error of arithmetic.",
        CONFIGURATIONS,
    ),
    Bug(
        "null-stops-an-export",
        "ConfigReader.finish",
        "{key: value for key, value in self._left.items() if key not in HARMLESS and value is not None}",
        "{key: value for key, value in self._left.items() if key not in HARMLESS}",
        "A setting that is not set stops an export.",
        CONFIGURATIONS,
    ),
)
