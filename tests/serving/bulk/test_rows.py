"""Lines of a prompts' file: what they ask for, and what is refused, with the number of the line."""

import hashlib
import json

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.backends import Place
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.bulk.prompts import Prompts, prompts_file
from coupled_sampling.serving.bulk.rows import RowReader
from coupled_sampling.serving.jobs import GrammarSource
from coupled_sampling.serving.ways import JobCheck
from standins.serving import text_bundle


def reader_of(bundle, seed=0, samples=1):
    tokenizer = bundle.tokenizer()
    check = JobCheck(bundle, tokenizer, Place(), 2, "auto", {})
    return RowReader(bundle, tokenizer, seed=seed, samples=samples, check=check)


@pytest.fixture(scope="module")
def pictures():
    return reader_of(open_bundle("fashion"), seed=7)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return reader_of(open_bundle(text_bundle(tmp_path_factory.mktemp("text"))))


def sha(name):
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)


def test_the_noise_of_a_line_is_keyed_by_its_id(pictures):
    (one,) = pictures.read(1, '{"id": "a", "prompt": "shoe"}')
    (other,) = pictures.read(99, '{"prompt": [263], "id": "b"}')
    assert (one.id, one.job.prompt, one.job.seed, one.job.sequence) == ("a", (263,), 7, sha("a"))
    assert (other.job.prompt, other.job.sequence) == ((263,), sha("b"))


def test_a_line_without_an_id_has_its_number_and_its_own_noise_wins(pictures):
    (asked,) = pictures.read(12, '{"prompt": "bag", "seed": 3, "sequence": 5}')
    assert (asked.id, asked.job.seed, asked.job.sequence) == ("12", 3, 5)


def test_samples_are_sequences_with_ids_and_noise_of_their_own(pictures):
    made = pictures.read(1, '{"id": "a", "prompt": "shoe", "samples": 3}')
    assert [one.id for one in made] == ["a/0", "a/1", "a/2"]
    assert [one.job.sequence for one in made] == [sha("a/0"), sha("a/1"), sha("a/2")]
    counted = pictures.read(1, '{"id": "a", "prompt": "shoe", "samples": 2, "sequence": 4}')
    assert [one.job.sequence for one in counted] == [4, 5]


def test_what_was_asked_is_told_apart_by_its_number(pictures):
    (one,) = pictures.read(1, '{"id": "a", "prompt": "shoe"}')
    same = pictures.read(5, '{"prompt": "shoe", "id": "a"}')[0]
    others = [
        pictures.read(1, line)[0]
        for line in ('{"id": "a", "prompt": "bag"}', '{"id": "a", "prompt": "shoe", "settings": {"temperature": 0.5}}')
    ]
    assert one.digest == same.digest
    assert len({one.digest, *(other.digest for other in others)}) == 3


def test_fields_of_texts(words):
    line = {
        "id": 4,
        "messages": [{"role": "user", "content": "hello"}],
        "stop": ["END", "\n"],
        "max_tokens": 9,
        "settings": {"temperature": 0.5, "top_p": None},
        "logit_bias": {"17": -2},
        "presence_penalty": 0.5,
        "logprobs": True,
    }
    (asked,) = words.read(1, json.dumps(line))
    job = asked.job
    assert asked.id == "4"
    assert (job.stop, job.continued, job.logprobs, dict(job.bias), job.presence_penalty) == (
        ("END", "\n"),
        False,
        True,
        {17: -2.0},
        0.5,
    )
    assert job.settings == {"temperature": 0.5, "top_p": None, "length": 9}
    assert words.read(1, '{"prompt": "a", "stop": "END"}')[0].job.stop == ("END",)


def test_a_grammar_is_its_kind_and_its_text(words):
    pytest.importorskip("llguidance", reason="needs the extra [grammar]")
    grammar = words.read(1, '{"prompt": "a", "grammar": {"json_schema": {"type": "integer"}}}')[0].job.grammar
    assert grammar == GrammarSource("json_schema", '{"type": "integer"}')


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "[1] is no object"),
        ('{"prompt": "shoe", "seed": NaN}', "NaN is no number in JSON"),
        ('{"promt": "shoe"}', "'promt' is no field, expected some of id, prompt"),
        ('{"id": "a"}', "of prompt and messages none is given"),
        ('{"prompt": "shoe", "messages": []}', "of prompt and messages both are given"),
        ('{"prompt": "shoo"}', "shoo"),
        ('{"prompt": []}', "prompt has shape (0,)"),
        ('{"prompt": [1.5]}', "prompt is [1.5], expected integer tokens"),
        ('{"prompt": [true]}', "prompt is [True], expected"),
        ('{"prompt": [300]}', "prompt token 0 is 300, expected tokens in [0, 267)"),
        ('{"prompt": 3}', "prompt is 3, expected a text"),
        ('{"prompt": "shoe", "messages": null, "id": ""}', "id is '', expected a text of 1 to 500"),
        ('{"prompt": "shoe", "id": 1.5}', "id is 1.5, expected"),
        ('{"prompt": "shoe", "id": "\\ud800"}', "expected a text of 1 to 500"),
        ('{"prompt": "shoe", "seed": -1}', "seed is -1, expected"),
        ('{"prompt": "shoe", "seed": "x"}', "seed is 'x', expected"),
        ('{"prompt": "shoe", "sequence": 18446744073709551616}', "sequence is 18446744073709551616, expected"),
        ('{"prompt": "shoe", "samples": 0}', "samples is 0, expected"),
        ('{"prompt": "shoe", "settings": 3}', "settings is 3, expected an object"),
        ('{"prompt": "shoe", "settings": {"colour": "red"}}', "settings have no colour"),
        ('{"prompt": "shoe", "settings": {"temperature": "hot"}}', "temperature is 'hot'"),
        ('{"prompt": "shoe", "settings": {"temperature": [1]}}', "temperature is [1], expected a number"),
        ('{"prompt": "shoe", "settings": {"method": 3}}', "method"),
        ('{"prompt": "shoe", "settings": {"method": "scd"}}', "'scd'"),
        ('{"prompt": "shoe", "settings": {"window": "wide"}}', "window is 'wide'"),
        ('{"prompt": "shoe", "settings": {"window": 1.5}}', "window is 1.5"),
        ('{"prompt": "shoe", "settings": {"drafting": 5}}', "drafting is 5"),
        ('{"prompt": "shoe", "settings": {"corrections": "all"}}', "corrections is 'all'"),
        ('{"prompt": "shoe", "settings": {"guidance": "much"}}', "guidance is 'much'"),
        ('{"prompt": "shoe", "settings": {"top_k": 1.5}}', "top_k is 1.5"),
        ('{"prompt": "shoe", "settings": {"length": "long"}}', "length is 'long'"),
        ('{"prompt": "shoe", "max_tokens": 3}', "length is 3, but this model makes exactly 196 tokens"),
        ('{"prompt": "shoe", "max_tokens": 3, "settings": {"length": 4}}', "max_tokens and settings: length are given"),
        ('{"prompt": "shoe", "max_tokens": 0}', "max_tokens is 0, expected"),
        ('{"prompt": "shoe", "stop": "END"}', "stop is 'END', a text, but this model has no tokenizer"),
        ('{"prompt": "shoe", "stop": 3}', "stop is 3, expected a text or a list of texts"),
        ('{"prompt": "shoe", "stop": [""]}', "expected a text or a list of texts"),
        ('{"prompt": "shoe", "logprobs": 1}', "logprobs is 1, expected True or False"),
        ('{"prompt": "shoe", "logit_bias": {"a": 1}}', "logit_bias is {'a': 1}, expected"),
        ('{"prompt": "shoe", "logit_bias": {"300": 1}}', "logit_bias token 0 is 300, expected tokens in [0, 267)"),
        ('{"prompt": "shoe", "logit_bias": {"1": "x"}}', "logit_bias of 1 is 'x', expected a finite number"),
        ('{"prompt": "shoe", "frequency_penalty": "x"}', "frequency_penalty is 'x', expected a finite number"),
        ('{"prompt": "shoe", "repetition_penalty": 0}', "penalty is 0"),
        ('{"prompt": "shoe", "grammar": {"ebnf": "x"}}', "expected an object with one of json_schema, regex, lark"),
        ('{"prompt": "shoe", "grammar": {"regex": 3}}', "grammar: regex is 3, expected a text"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "the model fashion has no chat template"),
        ('{"messages": ["x"]}', "messages is ['x'], expected a list"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_refused_by_its_number(pictures, line, words):
    with pytest.raises(InvalidArgument) as refused:
        pictures.read(17, line)
    assert str(refused.value).startswith("line 17: ")
    assert words in str(refused.value)


def test_a_text_that_does_not_fit_is_refused_before_anything_runs(words):
    with pytest.raises(InvalidArgument, match=r"line 2: a prompt of .* need .* positions, the model holds 256"):
        words.read(2, json.dumps({"prompt": "hello", "max_tokens": 300}))


@pytest.fixture
def prompts_of(pictures, tmp_path):
    """``prompts_of(line, ...)``: the prompts of a file with these lines."""

    def make(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return Prompts(path, pictures)

    return make


def test_ids_that_come_twice_are_refused_with_their_lines(prompts_of):
    one, other = '{"id": "a", "prompt": "shoe"}', '{"id": "b", "prompt": "shoe"}'
    with pytest.raises(InvalidArgument, match="lines 1 and 4: the id 'a' comes twice"):
        prompts_of(one, other, "", one)
    with pytest.raises(InvalidArgument, match="lines 1 and 2: the id '2' comes twice"):
        prompts_of('{"id": "2", "prompt": "shoe"}', '{"prompt": "bag"}')
    with pytest.raises(InvalidArgument, match="lines 1 and 2: the id 'a/1' comes twice"):
        prompts_of('{"id": "a/1", "prompt": "bag"}', '{"id": "a", "prompt": "shoe", "samples": 2}')


def test_prompts_are_read_again_without_what_is_done(prompts_of):
    lines = [json.dumps({"id": f"r{i}", "prompt": "shoe"}) for i in range(50)]
    prompts = prompts_of(*lines, "", "  ")
    everything = list(prompts.remaining())
    assert [one.id for one in everything] == [f"r{i}" for i in range(50)]
    kept = set(range(0, 50, 7))
    done = [one for i, one in enumerate(everything) if i not in kept]
    prompts.mark_done([*(one.id for one in done), "stranger"], [*(one.digest for one in done), 1])
    assert [one.id for one in prompts.remaining()] == [f"r{i}" for i in sorted(kept)]
    assert prompts.done.sum() == 50 - len(kept)


def test_a_sequence_that_was_made_of_another_prompt_is_refused(prompts_of, pictures):
    prompts = prompts_of('{"id": "a", "prompt": "shoe"}', '{"id": "b", "prompt": "shoe"}')
    other = pictures.read(1, '{"id": "b", "prompt": "bag"}')[0]
    with pytest.raises(InvalidArgument, match="the sequence 'b' was made with another prompt, seed or settings"):
        prompts.mark_done(["b"], [other.digest])


def test_a_file_that_changes_while_it_is_read_is_refused(prompts_of):
    one, other = '{"id": "a", "prompt": "shoe"}', '{"id": "b", "prompt": "shoe"}'
    prompts = prompts_of(one, other)
    for changed, words in (
        ((one, other.replace("shoe", "bag")), "line 2 was changed"),
        ((one,), "became fewer"),
        ((one, other, '{"id": "c", "prompt": "bag"}'), "line 3 was changed"),
    ):
        prompts.path.write_text("\n".join(changed))
        with pytest.raises(InvalidArgument, match=words):
            list(prompts.remaining())


def test_files_that_are_no_lines_of_text(prompts_of, tmp_path, monkeypatch):
    with pytest.raises(InvalidArgument, match="line 1 is no text in UTF-8"):
        prompts_of(b"\xff\xfe")
    monkeypatch.setattr("coupled_sampling.serving.bulk.prompts._MOST", 20)
    with pytest.raises(InvalidArgument, match="line 2 has more than 20 bytes"):
        prompts_of("", '{"prompt": "shoe"          }')
    with pytest.raises(InvalidArgument, match="is a folder, expected a file"), prompts_file(str(tmp_path)):
        pass
    with pytest.raises(InvalidArgument, match="is not there"), prompts_file(str(tmp_path / "no")):
        pass


def test_a_byte_order_mark_is_no_part_of_the_first_line(prompts_of):
    prompts = prompts_of(b'\xef\xbb\xbf{"id": "a", "prompt": "shoe"}')
    assert [one.id for one in prompts.remaining()] == ["a"]


def test_memory_is_two_numbers_and_a_truth_for_each_sequence(prompts_of):
    prompts = prompts_of(*(json.dumps({"id": str(i), "prompt": "shoe"}) for i in range(10)))
    arrays = [value for value in vars(prompts).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 10 * (8 + 8 + 1 + 8 + 8)
