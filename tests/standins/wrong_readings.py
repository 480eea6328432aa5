"""Wrong readings of a checkpoint: functions from a description and its weights to those of another model.

A test of an exporter must see each of them, else it would not see the exporter make that mistake.
"""

import dataclasses

import numpy as np

from coupled_sampling.export import reference_logits

__all__ = ["assert_they_show", "changed", "epsilon", "kinds", "rotary", "scaling", "without"]


def changed(**changes):
    return lambda description, weights: (dataclasses.replace(description, **changes), weights)


def rotary(**changes):
    def wrong(description, weights):
        return dataclasses.replace(description, rotary=dataclasses.replace(description.rotary, **changes)), weights

    return wrong


def scaling(**changes):
    def wrong(description, weights):
        def changed(one):
            return one and dataclasses.replace(one, scaling=dataclasses.replace(one.scaling, **changes))

        if not description.layer_kinds:
            return dataclasses.replace(description, rotary=changed(description.rotary)), weights
        layers = (dataclasses.replace(one, rotary=changed(one.rotary)) for one in description.layer_kinds)
        return dataclasses.replace(description, layer_kinds=tuple(layers)), weights

    return wrong


def kinds(layer, **changes):
    """A reading that is wrong about what one layer sees."""

    def wrong(description, weights):
        layers = list(description.kinds())
        layers[layer] = dataclasses.replace(layers[layer], **changes)
        plain = {"rotary": None, "attention_window": 0, "layer_kinds": tuple(layers)}
        return dataclasses.replace(description, **plain), weights

    return wrong


def epsilon(description, weights):
    return dataclasses.replace(description, norm=dataclasses.replace(description.norm, epsilon=1e-6)), weights


def without(ending):
    """A reading that forgets the weights of this ending: norms become 1, all else 0."""

    def wrong(description, weights):
        neutral = 1.0 if ending.endswith("norm.weight") else 0.0
        return description, lambda name: weights(name) * 0 + neutral if name.endswith(ending) else weights(name)

    return wrong


def assert_they_show(exportable, wrong_readings, tokens, expected, generated, tolerance, condition=None):
    """The right reading gives the ``expected`` logits of the ``generated`` tokens, every wrong one others."""
    right = reference_logits(exportable.description, exportable.weights, tokens, condition=condition)
    assert np.abs(right[:, generated] - expected).max() <= tolerance
    for i, wrong_reading in enumerate(wrong_readings):
        description, weights = wrong_reading(exportable.description, exportable.weights)
        told = condition if description.condition is not None else None
        wrong = reference_logits(description, weights, tokens, condition=told)[:, generated]
        assert np.abs(wrong - expected).max() > 20 * tolerance, f"wrong reading {i} does not show"
