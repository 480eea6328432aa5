"""Bugs of step graphs for windows with branches, and of how they are fed and read."""

from planting import Bug

__all__ = ["BUGS"]

GRAPH = ("test_tree_step_graph",)
OPENED = ("test_ort_tree_step",)

BUGS = (
    Bug(
        "branches-race-with-the-noise-of-their-columns",
        "_Decision.walk",
        "self.race_noise(tree.position)",
        'self.race_noise(self.positions("start"))',
        "What a branch's slot draws is not what its position draws: right branches are refused.",
        GRAPH,
    ),
    Bug(
        "drafts-stand-behind-refused-ones",
        "decision_tree:TreeSlots.walk",
        'graph.op("Not", self._seeing(refused))',
        'graph.op("Not", refused)',
        "A draft is committed that follows a token which was not drawn.",
        GRAPH,
    ),
    Bug(
        "the-walks-sites-are-the-paths",
        "TreeSlots._slots_of_sites",
        'graph.op("Where", graph.op("Less", found, graph.number(0, "int64")), slot, found)',
        "slot",
        "Where the walk went along a branch, the path's own tokens are committed.",
        GRAPH,
    ),
    Bug(
        "redrafts-by-the-last-child",
        "TreeSlots._going_on",
        'graph.op("Greater", column, slot)',
        'graph.op("Less", column, slot)',
        "Redrafts are those of the branch that was thought of last, and the least likely.",
        GRAPH,
    ),
    Bug(
        "redrafts-of-the-path-beside-the-walk",
        "TreeSlots._going_on",
        'graph.op("And", behind, graph.op("Not", self._seeing(aside)))',
        "at_end",
        "What was drawn behind the walk's end is forgotten, for what the path drew behind other tokens.",
        GRAPH,
    ),
    Bug(
        "corrected-from-the-paths-drafts",
        "decision_correction:Sweep.__init__",
        'graph.op("Where", graph.op("Unsqueeze", near, graph.integers(2)), aside, self.old)',
        "self.old",
        "Laws of a branch's slots are corrected for tokens that they were never computed behind.",
        GRAPH,
    ),
    Bug(
        "corrected-laws-of-the-paths-slots",
        "decision_correction:Sweep.turn",
        "sites if self.sites.followed is None else self.sites.followed.places(graph, sites)",
        "sites",
        "A corrected redraft behind a branch comes from the law of another context.",
        GRAPH,
    ),
    Bug(
        "candidates-of-corrected-laws-left-out",
        "Sweep.turn",
        "self.drawn.ranking.again(target.law, at)",
        'Best(at(given["best_tokens"]), at(given["best_scores"]))',
        "Branches have nothing to choose from where a law was corrected.",
        GRAPH,
    ),
    Bug(
        "committed-sites-beyond-the-path-keep-their-drafts",
        "_Decision.sweep",
        'graph.op("Where", slots.begun, drawn.tokens, slots.draft)',
        'graph.op("Where", slots.valid, drawn.tokens, slots.draft)',
        "What a branch commits behind the path's end is another token than was drawn.",
        GRAPH,
    ),
    Bug(
        "a-branchs-nucleus-cut-at-the-candidates",
        "asking_slots",
        "window.end + window.branches",
        "window.end",
        "A branch's token comes from a law that too few logits were looked at for, and nobody asks again.",
        GRAPH,
    ),
    Bug(
        "tree-graphs-chosen-for-chains",
        "Bundle.step_graph",
        "(graph.method, graph.guided, graph.noise, graph.corrected, graph.tree) == wanted",
        "(graph.method, graph.guided, graph.noise, graph.corrected, tree) == wanted",
        "What was opened for trees takes none.",
        OPENED,
    ),
    Bug(
        "noise-up-to-the-deepest-draft",
        "decided_ends",
        "int(window.start[b]) + max(depth) + 2",
        "int(window.start[b]) + max(depth) + 1",
        "The token behind the deepest branch is drawn with whatever lay in the ring.",
        OPENED,
    ),
    Bug(
        "a-failure-beyond-the-path-is-not-told",
        "outcome_of_tree",
        "window.fresh + beyond",
        "window.fresh",
        "A row that was decided at a dead slot of a branch goes on with a token that is none.",
        GRAPH,
    ),
)
