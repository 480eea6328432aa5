"""JavaScript decodes windows with branches as Python does: the same branches, tokens and steps."""

import json
import re

import numpy as np
import pytest

from coupled_sampling import Sampling, open_bundle
from coupled_sampling.branching import BestFirst, BranchContext
from coupled_sampling.contracts import Candidates
from coupled_sampling.errors import InvalidLogits
from standins.javascript import by_node, by_python, drafting, evaluate, needs_node, needs_runtime, run
from standins.toy_bundles import toy_gpt, write_toy_bundle


def some_branches(seed):
    """What a rule for branches may be asked: candidates of fewer positions than the path has, or of more; drafts that are none."""
    random = np.random.default_rng(seed)
    known, drafts = random.integers(0, 9, 2).tolist()
    tokens = np.array([random.permutation(30)[:16] for _ in range(known)], np.int64).reshape(known, 16)
    scores = -np.sort(-random.normal(0, 2, (known, 16)).astype(np.float32), axis=1)
    scores[random.random(scores.shape) < 0.1] = -np.inf
    path = random.integers(0, 30, drafts)
    same = (np.arange(drafts) < known) & (random.random(drafts) < 0.7)
    path[same] = tokens[: len(same), 0][same[:known]]
    most, reach = int(random.integers(1, 30)), drafts + int(random.integers(0, 4)) + (not drafts)
    return BranchContext(np.append(7, path), 1, most, reach, Candidates(tokens, scores))


@needs_node
def test_branches_are_those_of_python():
    contexts = [some_branches(seed) for seed in range(60)]
    asked = []
    for context in contexts:
        known = zip(
            context.candidates.tokens.tolist(), np.maximum(context.candidates.scores, -1e30).tolist(), strict=True
        )
        candidates = [{"tokens": tokens, "scores": scores} for tokens, scores in known]
        asked.append([context.path.tolist(), candidates, context.most, context.reach])
    script = f"JSON.stringify({json.dumps(asked)}.map((each) => m.findBranches(...each)))"
    for context, found in zip(contexts, json.loads(evaluate("trees.js", script)), strict=True):
        expected = BestFirst(context.most).branches(context)
        assert (found["parents"], found["tokens"]) == (expected.parents.tolist(), expected.tokens.tolist())


@needs_node
def test_the_drawing_of_drafts_has_a_place_for_each():
    trees = []
    for context in map(some_branches, range(20)):
        drafts = len(context.path)
        parents = [*range(-1, drafts - 1), *BestFirst(context.most).branches(context).parents.tolist()]
        trees.append({"path": drafts, "parents": parents})
    found = json.loads(evaluate("../tree.js", f"JSON.stringify({json.dumps(trees)}.map(m.layOut))"))
    for tree, laid in zip(trees, found, strict=True):
        assert laid["lanes"][: tree["path"]] == [0] * tree["path"]
        assert len(set(zip(laid["columns"], laid["lanes"], strict=True))) == len(tree["parents"])


@needs_runtime
def test_no_more_of_the_bundle_is_read_than_a_step_needs():
    """Tables and networks of corrections, and graphs of other steps, are some megabytes that a page would fetch for nothing."""
    script = """
        import { openBundle } from "./core/bundle.js";
        import { bundleFolder, folderReader } from "./folder.mjs";
        const read = folderReader(bundleFolder("fashion")), names = [];
        const bundle = await openBundle((name) => (names.push(name), read(name)));
        await bundle.openStep("scd-match", 24);
        console.log(JSON.stringify(names.sort()));
    """
    found = json.loads(run("--input-type=module", "--eval", script))
    assert found == ["manifest.json", "step-scd-match-tree.onnx", "weights.bin"]


@needs_runtime
def test_branches_give_the_tokens_and_steps_of_python():
    settings = ["--prompt", "shoe", "--method", "scd-match", "--window", 64, "--seed", 3]
    found = by_node(*settings, "--branches", 24)
    prompt = open_bundle("fashion").manifest.find_prompt("shoe")
    tokens, trace = by_python(
        "fashion", prompt, length=196, window=64, branches=24, drafting=drafting("copy:14"), seed=3
    )
    assert found["tokens"] == tokens
    assert found["committed_per_step"] == trace.committed_per_step
    assert trace.branch_tokens, "no branch was walked, so that nothing was tested"


def bundle_of_trees(folder, prompt, change=None, **manifest):
    pytest.importorskip("onnx")
    from coupled_sampling.export.step_bundle import write_step_graphs

    write_toy_bundle(folder / "toy", toy_gpt(40), max_window=40, change=change)
    write_step_graphs(folder / "toy", ["scd-match"])
    path = folder / "toy" / "manifest.json"
    own = {"length": 30, "prompts": {"own": {"tokens": prompt, "aliases": [], "title": "Own"}}, **manifest}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return folder / "toy"


@needs_runtime
@pytest.mark.parametrize(("window", "branches"), [(3, 1), (8, 5), (60, 40)])
def test_branches_in_windows_of_all_widths_behind_a_long_prompt(window, branches, tmp_path):
    """Narrower than the prompt, with more branches than drafts, and wider than the model is long."""
    prompt = [8, 1, 2, 5]
    bundle = bundle_of_trees(tmp_path, prompt)
    settings = {"length": 30, "window": window, "branches": branches, "drafting": "repeat", "seed": 2}
    tokens, trace = by_python(bundle, prompt, **settings, sampling=Sampling(0.5))
    arguments = ["--window", window, "--branches", branches, "--drafting", "repeat", "--seed", 2, "--temperature", 0.5]
    found = by_node("--bundle", bundle, "--method", "scd-match", *arguments)
    assert found["tokens"] == tokens
    assert found["committed_per_step"] == trace.committed_per_step
    assert trace.branch_tokens, "no branch was walked, so that nothing was tested"


@needs_runtime
def test_a_branch_is_followed_beyond_the_end_of_the_path(tmp_path):
    """The loop proposes none that reach so far, but a step graph takes them."""
    prompt = [8, 1, 2, 5]
    bundle = bundle_of_trees(tmp_path, prompt)
    drawn = by_python(bundle, prompt, length=6, window=6, branches=2, drafting="repeat", seed=2)[0]
    wrong = (drawn[0] + 1) % 9
    script = f"""
        import {{ openBundle }} from "./core/bundle.js";
        import {{ Step }} from "./core/step.js";
        import {{ folderReader }} from "./folder.mjs";
        const bundle = await openBundle(folderReader({json.dumps(str(bundle))}));
        const step = new Step(await bundle.openStep("scd-match", 4), bundle.manifest, 9, {{ seed: 2, sequence: 0 }}, 4);
        const sizes = {{ start: 0, known: 4, recycled: 0, fresh: 1, draws: true, round: 0, temperature: 1 }};
        const branches = {{ parents: [-1, 1, 2, 3], tokens: {drawn[:4]} }};
        console.log(JSON.stringify(await step.run({{ tokens: {[*prompt, wrong]}, branches, ...sizes }})));
    """
    found = json.loads(run("--input-type=module", "--eval", script))
    assert found == {"tokens": drawn[:5], "committed": 5, "failure": None, "candidates": []}


def nothing_behind_a_three(model):
    import onnx

    def number(name, value):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
        return name

    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "logits.before"
    for kind, inputs, output in (
        ("Unsqueeze", ("input_ids", number("axis.2", [2])), "tokens.wide"),
        ("Equal", ("tokens.wide", number("three", 3)), "is.three"),
        ("Where", ("is.three", number("nothing", np.float32(np.nan)), "logits.before"), "logits"),
    ):
        model.graph.node.append(onnx.helper.make_node(kind, inputs, [output], name=output))


@needs_runtime
def test_a_branch_without_a_law_ends_the_request_where_it_does_in_python(tmp_path):
    bundle = bundle_of_trees(tmp_path, [8, 1], nothing_behind_a_three)
    settings = {"length": 30, "window": 12, "branches": 6, "drafting": "repeat", "seed": 1}
    with pytest.raises(InvalidLogits) as raised:
        by_python(bundle, [8, 1], **settings)
    arguments = ["--window", 12, "--branches", 6, "--drafting", "repeat", "--seed", 1, "--method", "scd-match"]
    found = run("generate.mjs", "--bundle", bundle, *arguments, expect=1)
    assert "NaN" in found
    assert re.search("position ([0-9]+)", found)[1] == re.search("position ([0-9]+)", str(raised.value))[1]


@needs_runtime
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "scd-match", "--window", 64, "--branches", 63],
            "branches is 63, expected an integer from 0 to 62",
        ),
        (["--method", "scd-gumbel", "--branches", 4], "step graphs for trees for scd-match"),
    ],
)
def test_branches_that_cannot_be_are_refused(arguments, message):
    assert message in run("generate.mjs", *arguments, expect=1)
