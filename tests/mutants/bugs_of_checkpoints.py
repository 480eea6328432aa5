"""Bugs of what a bundle promises and what an export takes: files that graphs open, tokenizers, links, keys, the check of texts."""

from planting import Bug

__all__ = ["BUGS"]

GRAPHS = ("test_graph_files",)
LINKS = ("test_links_in_checkpoints",)
PIECES = ("test_pieces",)
KEYS = ("test_gguf",)
SAYS = ("test_what_an_export_says",)

BUGS = (
    Bug(
        "graphs-within-nodes-forgotten",
        "graph_files:_INSIDE",
        "{1: 'NodeProto', 5: 'TensorProto', 15: 'SparseTensorProto'}",
        "{5: 'TensorProto', 15: 'SparseTensorProto'}",
        "Weights of a node's attribute lie in a file that no hash covers.",
        GRAPHS,
    ),
    Bug(
        "window-graph-alone-looked-into",
        "open_bundle",
        "(manifest.window_graph, manifest.pixel_graph, *manifest.step_graphs)",
        "(manifest.window_graph,)",
        "A step graph runs with weights that no hash covers.",
        GRAPHS,
    ),
    Bug(
        "word-across-two-chunks-missed",
        "graph_files:_positions",
        "kept = data[-(len(_WORD) - 1) :]",
        "kept = b''",
        "A file that is named where two chunks of a graph meet is not found.",
        GRAPHS,
    ),
    Bug(
        "weights-behind-a-link",
        "check_graph_files",
        "(folder / name).resolve().parent not in (folder.resolve(), path.resolve().parent)",
        "False",
        "Weights may be a link to anywhere, which ONNX Runtime refuses late.",
        GRAPHS,
    ),
    Bug(
        "first-location-counts",
        "graph_files:_location",
        "entry = {number: data[first:last] for number, _, first, last in read_fields(data, start, end)}",
        "entry = {}\nfor number, _, first, last in read_fields(data, start, end):\n    entry.setdefault(number, data[first:last])",
        "Of two values of an entry the other one is checked than the one that is opened.",
        GRAPHS,
    ),
    Bug(
        "fields-beyond-their-message",
        "wire:read_fields",
        "at > end",
        "at > len(data)",
        "A damaged graph is read beyond the end of a message.",
        GRAPHS,
    ),
    Bug(
        "tokenizer-copied",
        "write_text_files",
        "(folder / _TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding='utf-8')",
        "(folder / _TOKENIZER).write_bytes((home / _TOKENIZER).read_bytes())",
        "The file is copied, and not what was understood of it.",
        LINKS,
    ),
    Bug(
        "errors-quote-the-file",
        "read_tokenizer",
        "raise error(\n    f\"{path} is no file of the tokenizers library{f', from {place[0][3:]} on' if place else ''}; "
        'export or copy it again, "
        'or upgrade tokenizers if the file is newer"\n) from None',
        'raise error(f"{path} is no file of the tokenizers library: {text}")',
        "An error shows what is in a private file.",
        LINKS,
    ),
    Bug(
        "templates-from-anywhere",
        "beside:_leads_away",
        "home not in real.parents and real.parent not in stores",
        "False",
        "A link to a private file gets that file into a bundle as a chat template.",
        LINKS,
    ),
    Bug(
        "templates-of-the-cache-refused",
        "beside:_leads_away",
        "home not in real.parents and real.parent not in stores",
        "home not in real.parents",
        "A chat template in Hugging Face's cache is refused.",
        LINKS,
    ),
    Bug(
        "any-token-is-a-special-token",
        "write_text_files",
        "name in _USUAL or tokenizer.token_to_id(text) is not None",
        "True",
        "An access token of a settings file gets into a bundle.",
        LINKS,
    ),
    Bug(
        "lowest-score-first",
        "pieces:_merges",
        "[(-score, -cut, text[:cut], text[cut:]) for cut in cuts]",
        "[(score, -cut, text[:cut], text[cut:]) for cut in cuts]",
        "Pieces are merged in the wrong order.",
        PIECES,
    ),
    Bug(
        "runs-grow-by-halves",
        "pieces:_merges",
        "[(-score, -cut, text[:cut], text[cut:]) for cut in cuts]",
        "[(-score, cut, text[:cut], text[cut:]) for cut in cuts]",
        "Runs of spaces are cut otherwise than SentencePiece cuts them.",
        PIECES,
    ),
    Bug(
        "no-space-before",
        "pieces:piece_tokenizer",
        "normalizers.Sequence([normalizers.Prepend('▁'), spaces])",
        "normalizers.Sequence([spaces])",
        "A text begins without the space that the model was trained with.",
        PIECES,
    ),
    Bug(
        "no-bytes-for-the-unknown",
        "pieces:piece_tokenizer",
        "BYTE in pieces.kinds",
        "False",
        "Characters that are no piece become the unknown token.",
        PIECES,
    ),
    Bug(
        "bos-only-where-the-file-says-so",
        "gguf_tokenizer:_pieces",
        "_mark(metadata, len(texts), 'bos', put=True, token=1)",
        "_mark(metadata, len(texts), 'bos', put=False, token=1)",
        "A Llama's text does not begin with its first token where the file is silent.",
        PIECES,
    ),
    Bug(
        "scores-may-be-equal",
        "pieces:_merges",
        "other != text and {*other, *text} != {text[0]}",
        "False",
        "Pieces of one score are merged in an order of the library's own.",
        PIECES,
    ),
    Bug(
        "unknown-keys-ignored",
        "gguf_config:_refuse_unknown",
        "[key for key in metadata if key not in known and not key.startswith(_OTHERS)]",
        "[]",
        "A key of a GGUF file that changes the numbers is passed over.",
        KEYS,
    ),
    Bug(
        "factor-without-a-type",
        "gguf_config:_rotary_scaling",
        "'linear' if factor != 1 else 'none'",
        "'linear' if linear != 1 else 'none'",
        "A rotary scaling that llama.cpp takes as linear is passed over.",
        KEYS,
    ),
    Bug(
        "tokens-that-the-model-lacks",
        "check_text:_check_tokens",
        "max(tokens) >= vocab_size",
        "False",
        "A bundle gets the tokenizer of another model.",
        SAYS,
    ),
    Bug(
        "truncated-before-unsupported",
        "export_checkpoint",
        "open_checkpoint(source, lambda path, config: family_of(path, config, chosen.family))",
        "open_checkpoint(source)",
        "Somebody downloads a file again that cannot be exported anyway.",
        SAYS,
    ),
)
