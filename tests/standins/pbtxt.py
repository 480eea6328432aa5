"""A reader of ``config.pbtxt``: the part of Protocol Buffers' text format that such files are written in."""

import re

_TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*("(?:[^"\\\n]|\\[0-7]{3})*"|[A-Za-z_]\w*|-?\d+|[{}\[\]:,])')


def read_pbtxt(text):
    """Its fields as a dictionary: each name has the list of all its values, as text, numbers, names or dictionaries."""
    tokens, at = [], 0
    text = re.sub(r"(?m)^#.*$", "", text).strip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found, f"no token at {text[at : at + 40]!r}"
        tokens.append(found[1])
        at = found.end()
    fields = _message(tokens)
    assert not tokens
    return fields


def _message(tokens):
    fields = {}
    while tokens and tokens[0] != "}":
        name = tokens.pop(0)
        if tokens[0] == ":":
            tokens.pop(0)
        fields.setdefault(name, []).extend(_values(tokens))
    return fields


def _values(tokens):
    token = tokens.pop(0)
    if token == "{":
        made = _message(tokens)
        assert tokens.pop(0) == "}"
        return [made]
    if token == "[":
        made = []
        while tokens[0] != "]":
            made += _values(tokens)
            if tokens[0] == ",":
                tokens.pop(0)
        tokens.pop(0)
        return made
    if token[0] == '"':
        plain = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), token[1:-1].encode())
        return [plain.decode()]
    return [int(token) if re.fullmatch(r"-?\d+", token) else token]
