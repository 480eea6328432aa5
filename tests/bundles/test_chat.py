"""Chat templates: what transformers makes of them, in a sandbox, and never two beginnings."""

import builtins
import datetime
import json
import tracemalloc

import pytest

from coupled_sampling.bundles import ChatTemplate, chat_sandbox
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The shape of SmolLM2's and Qwen2's."""

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HELLO = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}

pytest.importorskip("jinja2", reason="needs the extra [text]")


def test_a_conversation_is_written_as_the_template_says():
    template = ChatTemplate(CHATML)
    kind = "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert template.render([HELLO]) == kind + "<|im_start|>assistant\n"
    assert template.render([HELLO], reply=False) == kind
    assert template.render([SYSTEM, HELLO]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_special_tokens_go_by_their_names():
    template = ChatTemplate(LLAMA2, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render([SYSTEM, HELLO]) == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST]"
    talk = [HELLO, {"role": "assistant", "content": "Hi."}, HELLO]
    assert template.render(talk) == "<s>[INST] Hello [/INST] Hi. </s><s>[INST] Hello [/INST]"


def test_what_templates_expect_of_transformers_is_there():
    written = ChatTemplate(
        "{%- for m in messages %}\n    {%- if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}\n"
        "    {% if tools is not none %}tools{% endif %}\n{{ strftime_now('%Y') }}{{ missing }}"
    ).render([{"role": "user", "content": "<é>"}, HELLO])
    assert written == '{"role": "user", "content": "<é>"}' + f"{datetime.datetime.now():%Y}"
    assert ChatTemplate("{{ tools[0].name }}").render([HELLO], tools=[{"name": "clock"}]) == "clock"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[7].content.strip() }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_what_a_template_may_not_do_is_refused(source, words):
    with pytest.raises(InvalidArgument, match=words):
        ChatTemplate(source).render([HELLO])


def test_the_callers_messages_are_not_changed():
    message = dict(HELLO)
    with pytest.raises(InvalidArgument, match="SecurityError"):
        ChatTemplate("{{ messages[0].update({'content': 'x'}) }}").render([message])
    assert message == HELLO


def test_a_file_gives_the_same_template_back(tmp_path):
    template = ChatTemplate(LLAMA2, {"bos_token": "<s>", "eos_token": "</s>"})
    template.write(tmp_path / "chat.json")
    assert ChatTemplate.read(tmp_path / "chat.json") == template
    for content in (
        "[]",
        "{",
        '{"template": 3, "special_tokens": {}}',
        '{"template": "x", "special_tokens": {"bos_token": 1}}',
    ):
        (tmp_path / "chat.json").write_text(content)
        with pytest.raises(BundleError, match=r"chat\.json .*chat template"):
            ChatTemplate.read(tmp_path / "chat.json")


def test_without_jinja2_the_extra_is_named(monkeypatch):
    imported = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependency, match=r"pip install 'coupled-sampling\[text\]'"):
        ChatTemplate("").render([HELLO])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in 'x' * 60000 %}{% for b in 'x' * 60000 %}{% endfor %}{% endfor %}",
        "{% macro more(n) %}{% if n %}{{ more(n - 1) }}{{ more(n - 1) }}{% endif %}{% endmacro %}{{ more(60) }}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source, monkeypatch):
    monkeypatch.setattr(chat_sandbox, "MOST_STEPS", 10_000)
    with pytest.raises(InvalidArgument, match="10000 turns and calls"):
        ChatTemplate(source).render([HELLO])


def test_turns_that_take_long_are_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr(chat_sandbox, "MOST_SECONDS", -1)
    with pytest.raises(InvalidArgument, match="needs more than -1 s"):
        ChatTemplate(CHATML).render([HELLO])


GROWS = "{% set ns = namespace(a=[1]) %}{% for i in range(24) %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=3) %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
        "{% for i in range(9999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% for i in range(9999) %}" + "x" * 1000 + "{% endfor %}",
        "{{ 7 ** (10**9) }}",
        "{{ 'x'.center(10**10) }}",
        "{{ 'x'|center(10**10) }}",
        "{{ 'x'|indent(10**10) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%9999999999d'|format(1) }}",
        "{{ ('x' * 10**5).replace('x', 'y' * 10**5) }}",
        "{{ ('x' * 10**5)|replace('x', 'y' * 10**5) }}",
        "{{ ('y' * 10**5).join(range(9999)|map('string')|list) }}",
        "{{ range(9999)|join('y' * 10**5) }}",
        "{{ range(9)|batch(10**10, 'x')|list }}",
        "{{ lipsum(n=10**9) }}",
        "{{ '%*d' % (10**8, 1) }}",
        "{{ '{:{w}}'.format(1, w=10**8) }}",
        "{{ '{0:{1[0]}}'.format('a', [10**8]) }}",
        "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10**8}) }}",
        "{{ [[1] * 2000] | tojson(indent=10**6) }}",
        "{{ ([1] * 2000) | tojson(indent=99999) }}",
        "{{ (['x' * 10**5] * 1000) | string }}",
        "{{ ['x' * 10**5] * 1000 }}",
        "{{ '%s' % (['x' * 10**5] * 1000,) }}",
        "{{ ([range(10**4) | list] * 300) | sum(start=[]) | length }}",
        "{{ ('x' * 10**6) | list | length }}",
        "{{ ('a' * 10**4).translate({97: 'y' * 10**4}) }}",
        "{{ ('y' * 10**5).encode().join(['y'.encode()] * 1000) }}",
        GROWS + "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a ~ '' }}",
        GROWS + "{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ ns.a | upper }}",
        GROWS + "{% set ns.a = {1: ns.a, 2: ns.a} %}{% endfor %}{{ ns.a | trim }}",
        GROWS + "{% set ns.a = dict(a=ns.a, b=ns.a) %}{% endfor %}{{ ns.a | replace('x', 'y') }}",
        GROWS + "{% set ns.a = [ns.a] * 2 %}{% endfor %}{{ [ns.a] | join }}",
        GROWS + "{% set b = [ns.a] %}{% set ns.a = b + b %}{% endfor %}{{ [ns.a] | join }}",
    ],
)
def test_a_template_that_takes_all_memory_is_refused(source, monkeypatch):
    monkeypatch.setattr(chat_sandbox, "MOST_TEXT", 2**20)
    monkeypatch.setattr(chat_sandbox, "MOST_STEPS", 2**14)
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match=r"no conversation needs|undefined"):
        ChatTemplate(source).render([HELLO])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_the_limits_change_nothing_of_what_templates_write():
    source = (
        "{% for i in [1, 2, 3] %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }};{% endfor %}"
        "{% for key in {'a': 1} %}{{ key }}{% endfor %}{% for key, value in {'a': 1}.items() %}{{ key }}{{ value }}{% endfor %}"
        "{% for m in messages if m.role == 'none' %}never{% else %}nobody{% endfor %}{% for x in nothing %}{% endfor %}"
        "{{ ['a', 'b']|join(', ') }}{{ 'ab'|replace('a', 'c') }}{{ 'a' ~ 1 ~ none }}{{ 3 * 'ab' }}{{ '%05d' % 7 }}"
        "{{ messages|map(attribute='role')|join }}{{ 'x'|indent(2) }}{{ ' x '|trim }}{{ [3, 1]|sort|first }}{{ 2 ** 10 }}"
        "{% for row in range(4)|batch(2) %}{{ row|list|length }}{% endfor %}{{ undefined_thing|default('d') }}{{ 1.5 + 1 }}"
    )
    import jinja2.sandbox

    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    assert ChatTemplate(source).render([HELLO]) == plain.render(messages=[HELLO])


def test_a_long_conversation_may_be_put_together_as_a_list():
    source = (
        "{% set ns = namespace(kept=[]) %}{% for m in messages %}{% set ns.kept = ns.kept + [m] %}{% endfor %}"
        "{% for m in ns.kept %}{{ m.content }}{% endfor %}{{ tools | tojson(indent=4) | length }}"
    )
    messages = [{"role": "user", "content": "x" * 2000}] * 400
    tools = [{"name": str(i), "parameters": {"a": [1, 2, 3]}} for i in range(200)]
    assert ChatTemplate(source).render(messages, tools=tools) == "x" * 800_000 + str(len(json.dumps(tools, indent=4)))
