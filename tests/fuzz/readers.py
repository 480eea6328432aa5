"""What each reader is given: a small whole thing, damaged in one place or a few, and the commands that read it.

`READERS` are functions of random numbers and an empty folder: they write the files and return command lines. The first is the
reader's own; the others follow if it accepts, since what was accepted must work.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
import onnx
from damage import damaged_bytes, damaged_json, damaged_message
from gguf_files import damage_entry, damage_table, gguf_file, gguf_parts
from safetensors.numpy import save

from coupled_sampling.bundles import CorrectionTables, open_bundle, write_corrections
from coupled_sampling.bundles.correction_tables import USES
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.export import ExportSettings, export_checkpoint
from standins.correctors import random_low_rank
from standins.picture_models import (
    BAAI,
    BACKBONE,
    CODES,
    EMU3_HEAD,
    LLAMAGEN_CONFIG,
    SIDE,
    WIDTH,
    WORDS,
    backbone_tensors,
    janus_tensors,
    llamagen_tensors,
)
from standins.tokenizers_of_text import byte_level, sentencepiece
from standins.torch_archives import archive_of

__all__ = ["READERS", "Reader"]

Reader: TypeAlias = Callable[[Random, Path], list[list[str]]]

_LENGTH = ["--count", "1", "--length", "2", "--window", "1", "--method", "ar"]
_SIZES = {"vocab_size": WORDS, "max_position_embeddings": 64}
_PLAIN = BACKBONE | _SIZES | {"eos_token_id": 2, "rope_theta": 10000.0, "tie_word_embeddings": False}
_SCALED = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
_NAMED = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 4 + i for i in range(CODES)}
_ROLES = {"<|extra_200|>": 17, "<|extra_201|>": 18, "<|extra_203|>": 20, "<|extra_204|>": 21}
_ROLES |= {"<|image token|>": 22, "<|image start|>": 23, "<|image end|>": 24}


@functools.cache
def _models() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Configurations and tensors of all families."""
    backbone = backbone_tensors("model.")
    gpt2 = {"n_embd": WIDTH, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": WORDS}
    vision = BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 700}
    chameleon = BACKBONE | {
        "model_type": "chameleon",
        "vocab_size": WORDS,
        "max_position_embeddings": 4096,
        "swin_norm": False,
    }
    return [
        (_PLAIN | _SCALED | {"model_type": "llama"}, backbone),
        (_PLAIN | {"model_type": "mistral", "sliding_window": None}, backbone),
        (gpt2 | {"model_type": "gpt2", "activation_function": "gelu_new"}, _gpt2_tensors()),
        (
            chameleon | {"vocabulary_map": _NAMED | {"<racm3:break>": 17, "<eoss>": 16, "<reserved08799>": 20}},
            backbone_tensors("model.", heads_normed=True),
        ),
        (
            {
                "model_type": "emu3",
                "text_config": BACKBONE | {"vocab_size": WORDS, "max_position_embeddings": 9216},
                "vocabulary_map": _ROLES | {"0": 15, "9": 14, "*": 9} | {f"<|visual token {i:06d}|>": 25 + i for i in range(CODES)},
            },
            backbone_tensors("text_model.model.", head=EMU3_HEAD),
        ),
        (BAAI, backbone),
        (
            {
                "model_type": "janus",
                "text_config": vision,
                "vision_config": {"num_image_tokens": SIDE**2},
                "vq_config": {"num_embeddings": CODES, "embed_dim": 5, "projection_dim": WIDTH, "num_hidden_layers": 2},
                "image_token_id": 3,
            },
            janus_tensors(),
        ),
        (LLAMAGEN_CONFIG, llamagen_tensors()),
    ]  # fmt: skip


def _gpt2_tensors() -> dict[str, Any]:
    random, tensors = np.random.default_rng(3), {}
    shapes = {"wte.weight": (WORDS, WIDTH), "wpe.weight": (64, WIDTH), "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    sizes = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH), "mlp.c_fc": (WIDTH, 4 * WIDTH)}
    sizes |= {"mlp.c_proj": (4 * WIDTH, WIDTH)}
    for layer in range(2):
        for name, shape in sizes.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        shapes |= {f"h.{layer}.ln_{i}.{part}": (WIDTH,) for i in (1, 2) for part in ("weight", "bias")}
    for name, shape in shapes.items():
        tensors[f"transformer.{name}"] = random.normal(0, 0.3, shape)
    return tensors


def _weights(number: int) -> bytes:
    return save({name: np.asarray(array, np.float32) for name, array in _models()[number][1].items()})


@functools.cache
def _saved(number: int) -> bytes:
    return _weights(number)


def _exported(folder: Path, source: Path) -> list[list[str]]:
    out = folder / "out"
    return [
        ["export", str(source), str(out)],
        ["inspect", str(out)],
        ["generate", str(out), "--tokens", "1,2", *_LENGTH, "--json"],
    ]


def configuration(random: Random, folder: Path) -> list[list[str]]:
    """``config.json`` of every family, and the files about text beside it."""
    number = random.randrange(len(_models()))
    (folder / "model.safetensors").write_bytes(_saved(number))
    files = {"config.json": _models()[number][0]}
    if random.random() < 0.2:
        shutil.copyfile(_text_bundle("bytes") / "tokenizer.json", folder / "tokenizer.json")
        files |= {
            "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.5},
            "tokenizer_config.json": {"chat_template": "{{ messages }}", "bos_token": {"content": "<s>"}},
            "special_tokens_map.json": {"bos_token": "<s>"},
        }
    broken = random.choice(sorted(files)) if len(files) > 1 and random.random() < 0.8 else "config.json"
    for name, content in files.items():
        text = damaged_json(random, content) if name == broken else json.dumps(content).encode()
        (folder / name).write_bytes(text)
    return _exported(folder, folder)


def safetensors(random: Random, folder: Path) -> list[list[str]]:
    """The header of the weights, or any byte of the file; and the index of shards."""
    (folder / "config.json").write_text(json.dumps(_models()[0][0]))
    whole = _saved(0)
    length = int.from_bytes(whole[:8], "little")
    if random.random() < 0.2:
        names = list(json.loads(whole[8 : 8 + length]))
        (folder / "one.safetensors").write_bytes(whole)
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "one.safetensors")}
        (folder / "model.safetensors.index.json").write_bytes(damaged_json(random, index))
        return _exported(folder, folder)
    if random.random() < 0.5:
        content = damaged_bytes(random, whole)
    else:
        header = damaged_json(random, json.loads(whole[8 : 8 + length]))
        content = struct.pack("<Q", len(header)) + header + whole[8 + length :]
    (folder / "model.safetensors").write_bytes(content)
    return _exported(folder, folder)


@functools.cache
def _archived() -> bytes:
    tensors = _models()[0][1]
    return archive_of({"model": {name: np.asarray(array, np.float16) for name, array in tensors.items()}})


def archive(random: Random, folder: Path) -> list[list[str]]:
    """A PyTorch archive: its pickle, or any byte of the file."""
    (folder / "config.json").write_text(json.dumps(_models()[0][0]))
    content = _archived()
    if random.random() < 0.3:
        content = damaged_bytes(random, content)
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as whole:
            names = {name.partition("/")[2]: whole.read(name) for name in whole.namelist()}
        content = archive_of({}, pickle=damaged_bytes(random, names.pop("data.pkl")), more=names)
    (folder / "pytorch_model.bin").write_bytes(content)
    return _exported(folder, folder)


@functools.cache
def _text_bundle(kind: str) -> Path:
    """A bundle with a tokenizer, made once and only copied."""
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="fuzz-", dir=BASES[-1] if BASES else None))
    inner = {"bytes": byte_level, "pieces": sentencepiece}[kind]()
    size = inner.get_vocab_size()
    random = np.random.default_rng(0)
    tensors = dict(_models()[0][1])
    for name in [name for name, array in tensors.items() if array.shape[0] == WORDS]:
        tensors[name] = random.normal(0, 0.5, (size, WIDTH))
    (home / "checkpoint").mkdir()
    (home / "checkpoint/config.json").write_text(json.dumps(_PLAIN | {"model_type": "llama", "vocab_size": size}))
    (home / "checkpoint/model.safetensors").write_bytes(
        save({name: np.asarray(array, np.float32) for name, array in tensors.items()})
    )
    inner.save(str(home / "checkpoint/tokenizer.json"))
    (home / "checkpoint/tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    export_checkpoint(home / "checkpoint", home / "bundle", ExportSettings(windows=(1, 4)))
    return home / "bundle"


BASES: list[Path] = []
"""Where what is made once goes; the last entry counts."""


def _copied(folder: Path, kind: str = "bytes") -> Path:
    return Path(shutil.copytree(_text_bundle(kind), folder / "bundle"))


def _recorded(bundle: Path, name: str, content: bytes) -> None:
    """Put ``content`` into the bundle as its file ``name``, checksum and all."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    record = file_record(bundle / name)
    manifest["files"][name] = {"sha256": record.sha256, "bytes": record.bytes}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def manifest(random: Random, folder: Path) -> list[list[str]]:
    """``manifest.json`` of a language model with all optional parts."""
    bundle = _copied(folder)
    whole = json.loads((bundle / "manifest.json").read_text())
    whole["prompts"] = {"a": {"tokens": [1, 2], "aliases": ["b", "c"], "title": "A"}}
    whole["unconditional_prompt"], whole["length"] = [3], 6
    sampling = ["--tokens", "1,2", "--count", "1", "--window", "2", "--json"]
    command = ["generate", str(bundle), "--method", "scd-match", *sampling]
    if random.random() < 0.5:
        whole["grid"] = {"rows": 1, "columns": 5}
        whole["layout"] = [{"first": 0, "count": whole["vocab_size"], "times": 5}, {"first": 1, "count": 1, "times": 1}]
        command = ["compare", str(bundle), "--methods", "scd-match", *sampling]  # which needs no pictures
    (bundle / "manifest.json").write_bytes(damaged_json(random, whole))
    return [["inspect", str(bundle)], ["inspect", str(bundle), "--json"], command]


def tokenizer(random: Random, folder: Path) -> list[list[str]]:
    """``tokenizer.json`` and the chat template, in a bundle and in a checkpoint."""
    kind = random.choice(("bytes", "pieces"))
    whole = (_text_bundle(kind) / "tokenizer.json").read_bytes()
    content = _damaged_tokenizer(random, whole)
    said = ["--prompt", "the cat, naïve 日本", *_LENGTH]
    if random.random() < 0.3:
        home = _text_bundle(kind).parent / "checkpoint"
        for name in ("config.json", "model.safetensors"):
            (folder / name).symlink_to(home / name)
        (folder / "tokenizer.json").write_bytes(content)
        return [*_exported(folder, folder), ["generate", str(folder / "out"), *said]]
    bundle = _copied(folder, kind)
    if random.random() < 0.1:
        template = {
            "template": "{% for m in messages %}{{ m.content }}{% endfor %}",
            "special_tokens": {"bos_token": "<s>"},
        }
        _recorded(bundle, "chat.json", damaged_json(random, template))
        return [["generate", str(bundle), *said, "--chat"]]
    _recorded(bundle, "tokenizer.json", content)
    return [["generate", str(bundle), *said], ["generate", str(bundle), *said, "--stop", "x"]]


def _damaged_tokenizer(random: Random, whole: bytes) -> bytes:
    """Damage that is not lost among the words: half of it is outside the vocabulary."""
    if random.random() < 0.2:
        return damaged_bytes(random, whole)
    document = json.loads(whole)
    if random.random() < 0.4:
        return damaged_json(random, document)
    words, merges = document["model"].pop("vocab"), document["model"].pop("merges")
    try:
        document = json.loads(damaged_json(random, document))
        document["model"] |= {"vocab": words, "merges": merges}
    except (ValueError, TypeError, KeyError, RecursionError):
        return whole[:-2]
    return json.dumps(document).encode()


@functools.cache
def _window_graph() -> Any:
    return onnx.load(_text_bundle("bytes") / "window.onnx")


def graph(random: Random, folder: Path) -> list[list[str]]:
    """The window graph, given to what writes step graphs and to what runs it."""
    bundle = _copied(folder)
    model = onnx.ModelProto()
    model.CopyFrom(_window_graph())
    _recorded(bundle, "window.onnx", damaged_message(random, model))
    generate = ["generate", str(bundle), "--tokens", "1,2", *_LENGTH, "--json"]
    if random.random() < 0.8:  # the other way starts a process
        return [generate]
    return [["step-graphs", str(bundle), str(folder / "out"), "--methods", "ar"], generate]


def gguf(random: Random, folder: Path) -> list[list[str]]:
    """Keys, values and types of the metadata, the table of tensors, and any byte of the file."""
    entries, table, weights = gguf_parts()
    entries, table = [list(entry) for entry in entries], [list(entry) for entry in table]
    how = random.random()
    if how < 0.5:
        for _ in range(random.choice((1, 1, 2))):
            damage_entry(random, entries)
    elif how < 0.7:
        damage_table(random, table)
    content = gguf_file(entries, table, weights, random if how > 0.97 else None)
    if how >= 0.7:
        content = damaged_bytes(random, content)
    (folder / "model.gguf").write_bytes(content)
    return _exported(folder, folder / "model.gguf")


def corrections(random: Random, folder: Path) -> list[list[str]]:
    """The file of correction tables, any byte of it or what its arrays say of themselves; and its record in the manifest."""
    bundle = open_bundle(_copied(folder))
    vocab_size = bundle.manifest.vocab_size
    uses = {use: random_low_rank(i, vocab_size, (1,), scale=0.1) for i, use in enumerate(USES)}
    written = write_corrections(bundle, CorrectionTables(uses), {"match": {"samples": 3, "held_out": {"a": 1.5}}})
    record = written.manifest.corrections
    assert record is not None
    path, kind = written.folder / record.file, random.random()
    if kind < 0.3:
        document = json.loads((written.folder / "manifest.json").read_text())
        try:
            document["corrections"] = json.loads(damaged_json(random, document["corrections"]))
        except (ValueError, RecursionError):
            document["corrections"] = "no JSON"
        (written.folder / "manifest.json").write_text(json.dumps(document))
    elif kind < 0.5:
        _recorded(written.folder, record.file, damaged_bytes(random, path.read_bytes()))
    else:
        _recorded(written.folder, record.file, _damaged_archive(random, path))
    decode = ["--tokens", "1,2", "--count", "1", "--length", "6", "--window", "4", "--corrections", "fitted"]
    return [
        ["generate", str(written.folder), "--method", random.choice(("scd-match", "sjd")), *decode],
        ["inspect", str(written.folder)],
    ]


def _damaged_archive(random: Random, path: Path) -> bytes:
    """An archive that is whole, of arrays that are not."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        wrong = random.choice(names)
        for name in names:
            data = old.read(name)
            if name == wrong:
                data = damaged_bytes(random, data)
            if name != wrong or random.random() < 0.9:
                new.writestr(zipfile.ZipInfo(name), data)
            if name == wrong and random.random() < 0.1:
                new.writestr(zipfile.ZipInfo(random.choice((name + ".npy", "x.npy", "plain/rows.npy", "../x"))), data)
    return stream.getvalue()


READERS: dict[str, Reader] = {
    "archive": archive,
    "manifest": manifest,
    "config": configuration,
    "corrections": corrections,
    "gguf": gguf,
    "safetensors": safetensors,
    "graph": graph,
    "tokenizer": tokenizer,
}
