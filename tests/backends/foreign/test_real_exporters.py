"""What Optimum and ONNX Runtime GenAI themselves write, of small random models: opened as they are, and by all checks.

The two want different versions of transformers, so `make test-frameworks` installs each into an environment of its own, and each
environment runs what it can. References are transformers' own logits of the model that was exported.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import ConcatenatedProvider, open_model, open_onnx
from coupled_sampling.cli import main
from coupled_sampling.errors import ProviderError
from coupled_sampling.testing.contracts.providers import check_provider

pytestmark = pytest.mark.frameworks

HOW = "make test-frameworks installs it"
VOCABULARY, LENGTH = 72, 128


def save_tiny(folder, kind, **sizes):
    """A random model, its tokenizer and generation settings, as ``save_pretrained`` writes them; its logits as a function."""
    transformers = pytest.importorskip("transformers", reason=HOW)
    torch = pytest.importorskip("torch", reason=HOW)
    tokenizers = pytest.importorskip("tokenizers", reason=HOW)
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=128, n_layer=2, n_head=4, n_positions=LENGTH, **common)
    else:
        kinds = {
            "llama": transformers.LlamaConfig,
            "qwen2": transformers.Qwen2Config,
            "qwen3": transformers.Qwen3Config,
        }
        # The builder takes whatever is as wide as the vocabulary for the head: nothing else may be.
        usual = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        usual |= {"num_key_value_heads": 2, "max_position_embeddings": LENGTH, "head_dim": 32}
        config = kinds[kind](**usual | common | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    outer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    outer.chat_template = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}"
    outer.save_pretrained(folder)
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
    transformers.GenerationConfig(**sampled, bos_token_id=1, eos_token_id=[2, 3]).save_pretrained(folder)

    def logits(tokens):
        with torch.no_grad():
            return model(torch.tensor(tokens)[None]).logits[0].numpy()

    return logits


def check_folder(folder, capsys, *options):
    """The folder by the Python API and by the command line, with what lies in it."""
    bundle = open_onnx(folder, widen="--widen" in options)
    assert bundle.manifest.window_graph.max_length == LENGTH
    assert (bundle.manifest.window_graph.kv_heads, bundle.manifest.window_graph.head_size) in ((2, 32), (4, 32))
    sampling = bundle.settings().sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 20, 0.9)
    assert bundle.manifest.stop_tokens == (2, 3)
    if bundle.manifest.description.startswith(
        "llama"
    ):  # transformers 5 writes others' tokenizers anew, as their models had them
        assert bundle.tokenizer().encode("w5 w6") == [1, 5, 6]
    assert bundle.chat_template() is not None
    with open_model(bundle, rows=3) as model:
        check_provider(model)
        prompts = [[1, 5, 6], [1, 7], [1, 8], [1, 9]]
        found, expected = (
            generate(model, prompts, length=20, method=method, window=6, seed=4).tokens
            for method in ("scd-match", "ar")
        )
        assert [tokens.tolist() for tokens in found] == [tokens.tolist() for tokens in expected]
    asked = [str(folder), *options, "--tokens", "1,5,6", "--length", "9", "--beside-ar", "--json"]
    assert main(["generate", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["methods"][1]["identical_to_ar"]


@pytest.fixture(scope="module")
def optimum_export(tmp_path_factory):
    """``optimum_export(kind)``: a folder that Optimum wrote, and transformers' logits."""
    exporters = pytest.importorskip("optimum.exporters.onnx", reason=HOW, exc_type=ImportError)
    made = {}

    def export(kind):
        if kind not in made:
            home = tmp_path_factory.mktemp(kind)
            logits = save_tiny(home / "checkpoint", kind)
            settings = {"task": "text-generation-with-past", "library_name": "transformers", "do_validation": False}
            exporters.main_export(str(home / "checkpoint"), home / "onnx", device="cpu", **settings)
            made[kind] = home / "onnx", logits
        return made[kind]

    return export


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3"])
def test_what_optimum_exports(optimum_export, capsys, kind):
    folder, logits = optimum_export(kind)
    with ConcatenatedProvider.open(folder / "model.onnx", batch_size=3) as provider:
        assert provider.batching == "padded"
        check_provider(provider, tolerance=1e-3, reference=logits)
    check_folder(folder, capsys)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_optimum_quantises(optimum_export, tmp_path, capsys, kind, per_channel):
    """Its own quantiser, with the settings that its documentation recommends."""
    pytest.importorskip("optimum.onnxruntime", reason=HOW, exc_type=ImportError)
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    source, _ = optimum_export(kind)
    quantizer = ORTQuantizer.from_pretrained(source, file_name="model.onnx")
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=per_channel)
    quantizer.quantize(save_dir=tmp_path, quantization_config=settings)
    for file in source.glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in source.glob("*.jinja"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ProviderError, match="the cause is DynamicQuantizeLinear"), open_model(tmp_path):
        pass
    check_folder(tmp_path, capsys, "--widen")


def build(home, precision, out):
    """What the builder of ONNX Runtime GenAI makes of a checkpoint, by its own command."""
    pytest.importorskip("onnxruntime_genai.models.builder", reason=HOW, exc_type=ImportError)
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        home,
        "-o",
        out,
        "-p",
        precision,
        "-e",
        "cpu",
    ]
    done = subprocess.run([*map(str, command), "-c", str(home)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_onnxruntime_genai_builds(tmp_path, capsys, kind):
    pytest.importorskip("onnxruntime_genai.models.builder", reason=HOW, exc_type=ImportError)
    logits = save_tiny(tmp_path / "checkpoint", kind)
    folder = build(tmp_path / "checkpoint", "fp32", tmp_path / "genai")
    with ConcatenatedProvider.open(folder / "model.onnx", batch_size=3) as provider:
        assert (provider.batching, provider.runs.changes) == ("in place", "")
        check_provider(provider, tolerance=1e-3, reference=logits)
    check_folder(folder, capsys)


@pytest.mark.parametrize("kind", ["llama"])
def test_what_onnxruntime_genai_builds_of_four_bits(tmp_path, capsys, kind):
    pytest.importorskip("onnxruntime_genai.models.builder", reason=HOW, exc_type=ImportError)
    save_tiny(tmp_path / "checkpoint", kind)
    folder = build(tmp_path / "checkpoint", "int4", tmp_path / "genai")
    assert "MatMulNBits at accuracy level 1 instead of 4" in str(open_onnx(folder).manifest.provenance)
    check_folder(folder, capsys)


def test_four_bits_at_the_builders_accuracy_are_no_function_of_the_tokens(tmp_path):
    """Of a model with some depth; the control that raising the accuracy is no idle change."""
    from coupled_sampling.backends.foreign.opening import DecoderFile
    from coupled_sampling.backends.ort.session import open_session

    pytest.importorskip("onnxruntime_genai.models.builder", reason=HOW, exc_type=ImportError)
    deep = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12, "head_dim": 64}
    save_tiny(tmp_path / "checkpoint", "llama", **deep, initializer_range=0.06)
    path = build(tmp_path / "checkpoint", "int4", tmp_path / "genai") / "model.onnx"
    opened = DecoderFile(path).open()
    assert ConcatenatedProvider(opened.graph, opened.session, 1, LENGTH).max_length == LENGTH
    with pytest.raises(ProviderError, match="logits differ by"):
        ConcatenatedProvider(opened.graph, open_session(path), 1, LENGTH)


def test_references_are_not_idle(tmp_path):
    """Logits of another random model are told from those of this one."""
    one, other = (save_tiny(tmp_path / name, kind) for name, kind in (("a", "llama"), ("b", "qwen2")))
    tokens = [1, 5, 6, 7]
    assert np.abs(one(tokens) - other(tokens)).max() > 0.1
