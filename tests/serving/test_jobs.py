"""Grammars that clients write: those that would cost a server its life are refused, or compiled where there is room."""

import threading

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.jobs import LONGEST_GRAMMAR, GrammarSource
from standins.serving import text_bundle

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(text_bundle(tmp_path_factory.mktemp("text")))


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("regex", "regex", "a" * (LONGEST_GRAMMAR + 1)),
        ("lark", "grammar", 'start: "' + "a" * LONGEST_GRAMMAR + '"'),
        ("json_schema", "schema", '{"const": "' + "a" * LONGEST_GRAMMAR + '"}'),
    ],
)
def test_a_grammar_that_is_too_long_is_refused_before_it_is_compiled(bundle, kind, name, text):
    with pytest.raises(
        InvalidArgument, match=f"^{name} has {len(text)} characters, expected at most {LONGEST_GRAMMAR}"
    ):
        GrammarSource(kind, text).grammar(bundle, ())


def test_rules_nested_as_deep_as_can_be_need_no_stack_of_whoever_asks(bundle):
    deep = 1600
    text = "start:r0\n" + "\n".join(f"r{i:x}:r{i + 1:x}" for i in range(deep)) + f'\nr{deep:x}:"c"'
    assert len(text) <= LONGEST_GRAMMAR
    made, restored = [], threading.Event()

    def ask():
        restored.wait(20)
        made.append(GrammarSource("lark", text).grammar(bundle, ()))

    asking = threading.Thread(target=ask)
    usual = threading.stack_size(512 << 10)  # in which llguidance would overflow, and end this process
    try:
        asking.start()
    finally:
        threading.stack_size(usual)
    restored.set()
    asking.join()
    assert made[0].kind == "grammar"
    assert threading.stack_size() == usual


def test_what_is_no_grammar_is_refused_as_ever(bundle):
    with pytest.raises(InvalidArgument, match=r"^regex is 'a\(b'"):
        GrammarSource("regex", "a(b").grammar(bundle, ())


def test_a_grammar_is_compiled_once_for_all_that_a_request_asks_for(bundle):
    one, again = (GrammarSource("regex", "a{1,3}b").grammar(bundle, ()) for _ in range(2))
    assert one is again
    assert GrammarSource("regex", "a{1,3}b").grammar(bundle, (7,)).stop == (7,)
    assert GrammarSource("regex", "a{1,3}c").grammar(bundle, ()) is not one
