"""Folders as Optimum, transformers.js and ONNX Runtime GenAI write them, around small graphs in their styles."""

import json

import pytest

from standins.grown_cache_graphs import HEADS, LENGTH, SIZE, VOCABULARY, genai, optimum

onnx = pytest.importorskip("onnx")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [text]")

TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
CONFIG = {"model_type": "llama", "max_position_embeddings": LENGTH, "vocab_size": VOCABULARY, "eos_token_id": 2}
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 11, "top_p": 0.9, "eos_token_id": [2, 3]}


def _write_texts(folder):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": TEMPLATE}))


def optimum_folder(folder, graph="model.onnx", write=optimum):
    """Everything in one folder."""
    (folder / graph).parent.mkdir(parents=True)
    write(folder / graph)
    _write_texts(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def transformers_js_folder(folder):
    """Graphs in a folder of their own."""
    return optimum_folder(folder, "onnx/model.onnx")


def genai_folder(folder):
    """One configuration, and sizes of heads that have a name only."""
    folder.mkdir(parents=True)
    with_symbolic_sizes(genai(folder / "decoder.onnx"), (3,))
    _write_texts(folder)
    sizes = {"head_size": SIZE, "num_key_value_heads": HEADS, "num_hidden_layers": 2}
    model = {"type": "llama", "context_length": LENGTH, "eos_token_id": [2, 3], "vocab_size": VOCABULARY}
    search = {name: value for name, value in GENERATION.items() if name != "eos_token_id"}
    config = {"model": {**model, "decoder": {"filename": "decoder.onnx", **sizes}}, "search": search}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def with_symbolic_sizes(path, axes):
    """``path`` with names instead of numbers at these axes of all caches, as ONNX Runtime GenAI's builder writes them."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past", "present")):
            for axis in axes:
                value.type.tensor_type.shape.dim[axis].dim_param = f"kv_cache_dim{axis}"
    onnx.save(model, path)
    return path
