"""A PyTorch module as a bundle: the graph, its logits, and what is refused.

The oracle of the logits attends causally over whole sequences with torch's own causal mask, and knows no cache.
"""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.backends import OrtProvider
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, OutputError
from coupled_sampling.export.torch import graph as torch_graph
from coupled_sampling.export.torch.cache import CacheShape, WindowCache
from coupled_sampling.export.torch.check import check_window_graph
from coupled_sampling.export.torch.module import ModuleSettings, export_module
from standins import ROOT
from standins.opening import on_cpu

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

EXAMPLE = ROOT / "examples" / "own_torch_model" / "export.py"
SHAPE = CacheShape(layers=1, kv_heads=2, head_size=4, columns=20)
PROMPTS = {"start": [0]}


class Small(torch.nn.Module):
    """One layer, four query heads on two key heads, learned positions; ``fault`` names a mistake to make."""

    def __init__(self, fault=""):
        super().__init__()
        torch.manual_seed(0)
        self.fault = fault
        self.embedding, self.position = torch.nn.Embedding(11, 16), torch.nn.Embedding(20, 16)
        self.query, self.pair = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 11)

    def forward(self, input_ids, positions, cache):
        if self.fault == "slots instead of positions":
            positions = positions - positions[:, :1]
        x = self.embedding(input_ids) + self.position(positions)
        query = self.query(x).unflatten(2, (4, 4)).transpose(1, 2)
        key, value = self.pair(x).unflatten(2, (2, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        attend = torch.nn.functional.scaled_dot_product_attention
        if self.fault == "no cache":
            return self.head(x + attend(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2))
        keys, values = cache.write(0, key, value)
        mask = cache.mask()
        if self.fault == "own keys only":
            mixed = attend(query, key, value, is_causal=True, enable_gqa=True)
        else:
            mixed = attend(query, keys, values, attn_mask=None if self.fault == "no mask" else mask, enable_gqa=True)
        if self.fault == "branch on W" and input_ids.shape[1] == 1:
            mixed = mixed * 0
        return self.head(x + mixed.transpose(1, 2).flatten(2))


def export(folder, module=None, shape=SHAPE, *, check=on_cpu, **settings):
    module = Small().eval() if module is None else module
    chosen = ModuleSettings(**({"name": "small", "prompts": PROMPTS} | settings))
    return export_module(module, folder, shape, chosen, check=check)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(tmp_path_factory.mktemp("torch") / "small", max_length=18, generated=(2, 8)).folder


def oracle(tokens):
    """Logits (T, 11) of one sequence, every query head written out, no cache."""
    module = Small().eval()
    with torch.no_grad():
        x = module.embedding.weight[tokens] + module.position.weight[: len(tokens)]
        query, (key, value) = module.query(x), module.pair(x).split(8, dim=-1)
        mixed = []
        for head in range(4):
            part, own = slice(head // 2 * 4, head // 2 * 4 + 4), slice(head * 4, head * 4 + 4)
            score = query[:, own] @ key[:, part].T / 2
            score = score.masked_fill(torch.ones_like(score).triu(1).bool(), -torch.inf)
            mixed.append(score.softmax(-1) @ value[:, part])
        logits = module.head(x + torch.cat(mixed, -1))
    logits[:, :2] = logits[:, 10:] = -torch.inf
    return logits.numpy()


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)


def close(found, expected):
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 7), (3, 1), (3, 4), (2, 18)])
def test_any_rows_and_slots_give_the_modules_logits_though_they_go_back(folder, rows, width):
    """Past and present are one buffer in the provider, so this is TensorScatter in place."""
    provider, tokens = OrtProvider.open(folder, batch_size=rows, threads=1), some_tokens(rows, 18)
    random = np.random.default_rng(1)
    cached = np.zeros(rows, np.int64)
    for _ in range(12):
        start = np.minimum(np.maximum(cached - random.integers(0, 3, rows), 0), 18 - width)
        for row in range(rows):
            tokens[row, start[row] :] = random.integers(0, 11, 18 - start[row])
        window = np.take_along_axis(tokens, start[:, None] + np.arange(width), 1)
        logits = provider.forward(window, start)
        for row in range(rows):
            close(logits[row], oracle(tokens[row, : start[row] + width])[start[row] :])
        cached = start + width


def test_the_graph_is_the_documented_one(folder):
    model = onnx.load(folder / "window.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("TensorScatter"), kinds.count("Attention")) == (2, 1)
    session = onnxruntime.InferenceSession(str(folder / "window.onnx"), providers=["CPUExecutionProvider"])
    cache = ("tensor(float)", ["B", 2, 20, 4])
    assert {value.name: (value.type, value.shape) for value in session.get_inputs()} == {
        "input_ids": ("tensor(int64)", ["B", "W"]),
        "start": ("tensor(int64)", ["B"]),
        "kv_length": ("tensor(int64)", [1]),
        "past_key_values.0.key": cache,
        "past_key_values.0.value": cache,
    }
    assert {value.name: (value.type, value.shape) for value in session.get_outputs()} == {
        "logits": ("tensor(float)", ["B", "W", 11]),
        "present.0.key": cache,
        "present.0.value": cache,
    }


def test_no_path_of_the_exporting_machine_is_in_the_graph(folder):
    content = (folder / "window.onnx").read_bytes()
    assert b".py" not in content
    assert str(ROOT).encode() not in content


def test_the_manifest_has_the_arguments_and_sensible_defaults(folder):
    manifest = open_bundle(folder).manifest
    assert (manifest.window_graph.max_length, manifest.window_graph.cache_length, manifest.length) == (18, 20, 18)
    assert (manifest.generated_tokens.first, manifest.generated_tokens.count) == (2, 8)
    assert manifest.find_prompt("START") == (0,)
    assert manifest.defaults.window == 16
    assert manifest.licence == "NOASSERTION"
    assert manifest.provenance["export"]["torch"] == torch.__version__


def test_without_kv_length_and_with_weights_in_their_own_file_it_replaces_the_bundle_before(tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    bundle = export(out, kv_length=False, external_data=True)
    assert set(bundle.manifest.files) == {"window.onnx", "window.onnx.data"}
    assert not bundle.manifest.window_graph.has_kv_length
    again = export(out, kv_length=False)
    assert set(again.manifest.files) == {"window.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("fault", ["slots instead of positions", "own keys only", "no mask"])
def test_a_module_whose_windows_differ_from_one_pass_is_refused(tmp_path, fault):
    with pytest.raises(InvalidArgument, match="between windows and one whole pass"):
        export(tmp_path / "out", Small(fault).eval())
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_ignores_the_cache_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="never wrote layer 0"):
        export(tmp_path / "out", Small("no cache").eval())


def test_a_module_that_behaves_otherwise_at_one_slot_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"between windows|differ from the module|cannot export"):
        export(tmp_path / "out", Small("branch on W").eval())


@pytest.mark.parametrize("check", [on_cpu, None])
def test_a_graph_that_is_not_the_module_is_found_by_the_check(tmp_path, monkeypatch, check):
    cleaned = torch_graph._cleaned

    def spoilt(model):
        model = cleaned(model)
        for index, tensor in enumerate(model.graph.initializer):
            if tensor.name.endswith("head.bias"):
                value = onnx.numpy_helper.to_array(tensor) + np.float32(1e-3)
                model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        return model

    monkeypatch.setattr(torch_graph, "_cleaned", spoilt)
    if check is not None:
        with pytest.raises(InvalidArgument, match=r"differ from the module's by 1\.0e-03"):
            export(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
    else:
        assert export(tmp_path / "out", check=None).manifest.provenance["export"]["checked"] is False


def set_opset(model):
    model.opset_import[0].version = 18


def use_nonpad(model):
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    node.input.extend([""] * (6 - len(node.input)) + ["start"])


def drop_scatter(model):
    next(node for node in model.graph.node if node.op_type == "TensorScatter").op_type = "Identity"


def fix_rows(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def lose_data(model):
    model.graph.initializer[0].ClearField("raw_data")


def use_custom(model):
    model.graph.node[0].domain = "com.microsoft"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_opset, "opset 18, expected 24"),
        (use_nonpad, "nonpad_kv_seqlen"),
        (drop_scatter, "1 TensorScatter, expected 2"),
        (fix_rows, "'input_ids'"),
        (lose_data, "has no data"),
        (use_custom, "com.microsoft::"),
    ],
)
def test_a_graph_that_breaks_the_promise_is_refused(folder, change, message):
    model = onnx.load(folder / "window.onnx")
    check_window_graph(model, SHAPE, 11, True)
    change(model)
    with pytest.raises(InvalidArgument, match=message):
        check_window_graph(model, SHAPE, 11, True)


class OtherSignature(torch.nn.Module):
    def forward(self, input_ids):
        return input_ids


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": OtherSignature().eval()}, InvalidArgument, r"expected forward\(input_ids, positions, cache\)"),
        ({"module": Small()}, InvalidArgument, "training mode"),
        ({"module": Small().eval().double()}, InvalidArgument, "float64 on cpu, expected float32"),
        ({"module": len}, InvalidArgument, "expected a torch.nn.Module"),
        ({"shape": CacheShape(1, 4, 4, 20)}, InvalidArgument, r"key of layer 0 is .*\(2, 2, 3, 4\), expected"),
        ({"shape": CacheShape(1, 2, 8, 20)}, InvalidArgument, "key of layer 0"),
        ({"shape": CacheShape(2, 2, 4, 20)}, InvalidArgument, "never wrote layer 1"),
        ({"max_length": 21}, InvalidArgument, "max_length is 21, expected 1 to .*20"),
        ({"generated": (5, 7)}, InvalidArgument, "generated is"),
        ({"prompts": {}}, InvalidArgument, "prompts is empty"),
        ({"check": True}, InvalidArgument, "check is True, expected what opens a bundle"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export(tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_prompts_and_length_beyond_the_cache_are_refused(tmp_path):
    with pytest.raises(BundleError, match="max_length 20"):
        export(tmp_path / "out", length=21, check=None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a bundle"):
        export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_sizes_and_layers_that_cannot_be_are_refused():
    with pytest.raises(InvalidArgument, match="columns is 0"):
        CacheShape(1, 1, 1, 0)
    cache = WindowCache(SHAPE.zeros(1), torch.zeros(1, 1, dtype=torch.int64))
    one = torch.zeros(1, 2, 1, 4)
    with pytest.raises(InvalidArgument, match="layer is 1, expected 0 to 0"):
        cache.write(1, one, one)
    cache.write(0, one, one)
    with pytest.raises(InvalidArgument, match="written twice"):
        cache.write(0, one, one)


def test_a_write_in_eager_mode_changes_its_columns_and_no_others():
    caches = [torch.full((2, 2, 20, 4), 7.0), torch.full((2, 2, 20, 4), 8.0)]
    positions = torch.tensor([[3, 4], [17, 18]])
    update = torch.randn(2, 2, 2, 4)
    keys, values = WindowCache(caches, positions).write(0, update, -update)
    for row, start in ((0, 3), (1, 17)):
        assert torch.equal(keys[row, :, start : start + 2], update[row])
        assert torch.equal(values[row, :, start : start + 2], -update[row])
        others = [column for column in range(20) if column not in (start, start + 1)]
        assert (keys[row, :, others] == 7).all()
    assert (caches[0] == 7).all()


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"coupled-sampling\[torch\]"):
        export_module(None, tmp_path / "out", SHAPE, ModuleSettings("none", PROMPTS), check=on_cpu)


def test_importing_the_exporter_loads_no_torch():
    code = "import sys, coupled_sampling.export.torch.module; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_example_runs_and_the_command_line_decodes_its_bundle(tmp_path, monkeypatch, capsys):
    specification = importlib.util.spec_from_file_location("own_torch_model", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["export.py", "--out", str(tmp_path / "own")])
    example.main()
    assert "scd-match gives the tokens of ar" in capsys.readouterr().out
    from coupled_sampling.cli import main

    assert main(["inspect", str(tmp_path / "own")]) == 0
    assert "own" in capsys.readouterr().out
