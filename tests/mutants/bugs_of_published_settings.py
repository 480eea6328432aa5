"""How models' own settings are reached: unconditional prompts made of the prompt, guidance of some tokens, scales of slots."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

BUGS = (
    Bug(
        "padding-of-the-last-token",
        "PaddedPrompt.__call__",
        "range(self.keep_first, len(tokens) - self.keep_last)",
        "range(self.keep_first, len(tokens))",
        "The unconditional prompt loses the token that begins a picture.",
        ("test_recommended",),
    ),
    Bug(
        "padded-prompt-read-as-tokens",
        "parse",
        "records[0] if records and isinstance(value, dict) else inner[0]",
        "inner[0]",
        "A manifest whose unconditional prompt is made of the prompt cannot be read.",
        ("test_recommended",),
    ),
    Bug(
        "interval-begins-one-late",
        "_Within.__call__",
        "index >= self.first",
        "index > self.first",
        "The first token of an interval is not guided.",
        ("test_bundle_settings",),
    ),
    Bug(
        "interval-forgotten-by-servers",
        "Job.request",
        'changes["guidance"] = Guidance(settings.scale)',
        'changes["guidance"] = Guidance(settings.guidance)',
        "A request to a server is guided throughout, whatever interval it asks for.",
        ("test_lanes",),
    ),
    Bug(
        "one-scale-for-all-slots",
        "OrtStep._feed_pairs",
        'put("guidance", paired.scale, rows, width)',
        'put("guidance", paired.scale[:, :1], rows, width)',
        "A step graph guides all slots of a window as its first one.",
        ("test_guidance_intervals",),
    ),
    Bug(
        "old-step-graphs-take-intervals",
        "step_checks:missing_step_graph",
        'not wanted.varied or step_graph_record(wanted).scales == "slot"',
        "True",
        "A step graph with one scale for a row is chosen for a scale that changes, and refuses the request.",
        ("test_guidance_intervals",),
    ),
)
