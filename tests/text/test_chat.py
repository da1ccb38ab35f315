"""Chat templates: what transformers' conventions give, and what a hostile template cannot do."""

import pytest

from kvist.errors import UnsupportedModelError, UsageError
from kvist.text import Tokenizer, render, sandbox

USER = [{"role": "user", "content": "hi <b>"}]


def show(template: str | None, messages: list[dict[str, object]] | None = None, **more: object) -> str:
    return render(template, USER if messages is None else messages, bos_token="<s>", eos_token="</s>", **more)  # type: ignore[arg-type]


def test_conventions() -> None:
    assert show("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>hi <b></s>"
    assert show("  {% if add_generation_prompt %}\nA{% endif %}\n") == "A"
    assert show("{% if not add_generation_prompt %}N{% endif %}", add_generation_prompt=False) == "N"
    assert show("{{ messages[0] | tojson }}") == '{"role": "user", "content": "hi <b>"}'
    assert show("{{ tools[0] | tojson(indent=1) }}", tools=[{"a": 1}]) == '{\n "a": 1\n}'
    assert show("{% if tools %}T{% else %}none{% endif %}") == "none"
    assert (
        show("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{{ loop.length }}{% endfor %}")
        == "0919"
    )
    assert show("{% generation %}G{% endgeneration %}") == "G"
    assert show("{{ strftime_now('%Y') | length }}") == "4"
    assert (
        show("{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = m.role ~ 1 %}{% endfor %}{{ ns.x }}")
        == "user1"
    )
    assert show("{{ '%s-%d' % ('a', 3) }}{{ [1, 2] | map('string') | join('+') }}") == "a-31+2"


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{% if %}", "broken .line 1"),
        ("{{ raise_exception('no\nsystem role') }}", "refuses the messages: no system role"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "loops more than"),
        ("{% for a in range(10**9) %}{% endfor %}", "number over"),
        ("{{ 'a' * 10**9 }}", "number over|more than"),
        ("{{ [1] * 99999999 }}", "more than"),
        ("{{ 10 ** 100000 }}", "power over 64"),
        ("{{ 'a' | center(10**9) }}", "number over"),
        ("{{ 'a'.ljust(100000000) }}", "number over"),
        ("{{ '%99999999d' % 1 }}", "width over"),
        (
            "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "more than",
        ),
        (
            "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "more than",
        ),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{% for i in range(1000) %}{{ 'a' * 100000 }}{% endfor %}", "longer than"),
        ("x" * ((1 << 20) + 1), "over 1,048,576"),
    ],
)
def test_bad_templates(template: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        show(template)
    assert "\n" not in str(caught.value)


def test_bad_messages() -> None:
    with pytest.raises(UsageError, match='"role" and "content"'):
        show("x", [{"content": "a"}])
    with pytest.raises(UnsupportedModelError, match="has no chat template"):
        show(None)


def test_limits_are_fresh_for_each_rendering() -> None:
    template = "{% for i in range(90000) %}{% endfor %}"
    for _ in range(12):
        assert show(template) == ""


@pytest.mark.model
def test_real_template(smollm2: Tokenizer) -> None:
    text = show(smollm2.chat_template)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi <b><|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.encode(text, add_special=False)[:2] == [1, 9690]


def test_a_rendering_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "{% for a in range(900) %}{% for b in range(900) %}{{ b }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.01)
    with pytest.raises(UsageError, match="template runs for"):
        show(slow)


def test_a_template_is_compiled_once_and_has_its_limits_each_time() -> None:
    half = "{% for a in range(600) %}{% for b in range(900) %}{% endfor %}{% endfor %}"
    for _ in range(3):  # together more rounds than one rendering may take
        assert show(half) == ""
