"""Decoders that read an encoder's output, what is read of their graphs, and the checks of conditions."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

TESTS = ("test_encoder_decoder",)

BUGS = (
    Bug(
        "encoder-caches-of-the-first-request-kept",
        "EncoderDecoderProvider.begin",
        "self._shared(states) or self._reading(states)",
        "next((read for read in self._read if read is not None), None) or self._reading(states)",
        "A row that begins another request looks at what the rows before it were told.",
        TESTS,
    ),
    Bug(
        "encoder-caches-not-refreshed",
        "EncoderDecoderProvider.begin",
        "self._read[row] = None",
        "if self._read[row] is not None and self._caches[0][row].any(): return",
        "A row that has decoded something keeps the encoder's caches of its last request.",
        TESTS,
    ),
    Bug(
        "encoder-caches-shared-by-shape",
        "EncoderDecoderProvider._shared",
        "read is not None and read.states.shape == states.shape and np.array_equal(read.states, states)",
        "read is not None and read.states.shape == states.shape",
        "Conditions of one shape are taken for one condition.",
        TESTS,
    ),
    Bug(
        "condition-not-copied",
        "EncoderDecoderProvider.begin",
        "np.array(request.condition, self.states_type)",
        "np.asarray(request.condition, self.states_type)",
        "What the caller does to the array afterwards changes what a row is thought to have read.",
        TESTS,
    ),
    Bug(
        "fork-leaves-the-encoder-behind",
        "EncoderDecoderProvider.fork",
        "self._read[target] = self._read[source]",
        "",
        "A copied row goes on with its own encoder's output.",
        TESTS,
    ),
    Bug(
        "the-last-column-forgotten",
        "encoder_decoder:EncoderDecoderProvider._run",
        "width, past = tokens.shape[1], int(start[0])",
        "width, past = tokens.shape[1], int(start[0]) - int(start[0] > 8)",
        "Beyond the eighth position a window forgets the last column before it.",
        TESTS,
    ),
    Bug(
        "guidance-taken-without-a-guided-model",
        "EncoderDecoderProvider.takes",
        "missing_offers(self, request) or self._problem(request.condition)",
        "self._problem(request.condition)",
        "A request's guidance is ignored in silence.",
        TESTS,
    ),
    Bug(
        "masks-of-moonshine-by-state",
        "STRIDES",
        "(1, 384)",
        "(1,)",
        "A mask that counts samples is given one entry for each state.",
        TESTS,
    ),
    Bug(
        "windows-not-cut",
        "EncoderDecoderProvider._forward",
        "token in self.breaks and j + 1 < width",
        "False",
        "Behind a token that the graph does not count, positions depend on where windows begin.",
        TESTS,
    ),
    Bug(
        "uncounted-tokens-not-looked-for",
        "_breaks",
        "{0, 1, 0 if pad is None else pad}",
        "{0, 1}",
        "The token that fills up is not tried, unless it is one of the first two.",
        TESTS,
    ),
    Bug(
        "deaf-decoder-accepted",
        "check_encoder_decoder",
        "difference_of_logits(provider.forward(tokens, np.zeros(1, np.int64)), logits) <= limit",
        "False",
        "A graph that never looks at the encoder's output is opened.",
        TESTS,
    ),
    Bug(
        "halves-of-two-models-accepted",
        "check_encoder_decoder",
        "difference > limit",
        "False",
        "A pair of files from two exports is opened as one model.",
        TESTS,
    ),
    Bug(
        "misnamed-layers-accepted",
        "read_graphs",
        "name not in given",
        "False",
        "An export whose layers have other names is found out by whatever ONNX Runtime says.",
        TESTS,
    ),
    Bug(
        "encoder-decoders-without-their-name",
        "_refuse_encoder_decoder",
        '"encoder_hidden_states" in inputs or any(name.startswith("past_key_values.0.encoder.") for name in inputs)',
        "False",
        "Half of an encoder-decoder model is refused for caches that it is said not to have.",
        TESTS,
    ),
    Bug(
        "one-of-a-pair-alone",
        "find_graphs",
        "not beside.is_file()",
        "False",
        "A missing half is named by ONNX Runtime instead of as what it is.",
        TESTS,
    ),
    Bug(
        "conditions-not-compared",
        "row_reuse",
        "probe.conditions is not None and len(probe.conditions) > 1",
        "False",
        "Of a model of one row that keeps the first condition for ever, the conformance checks see nothing.",
        TESTS,
    ),
    Bug(
        "conditions-of-the-first-row-only",
        "Probe.request",
        "self.conditions[row % len(self.conditions)]",
        "self.conditions[0]",
        "The conformance checks tell all rows the same condition, so that rows which share one are not seen.",
        TESTS,
    ),
)
