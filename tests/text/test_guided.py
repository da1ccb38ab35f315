"""Guided decoding with the real model: what ends keeps to what was asked for, every way there gives the same text."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvist import LLM, BeamSearchParams, SamplingParams, StructuredOutputs
from kvist.errors import RequestError, UsageError
from kvist.structured import structured_outputs
from kvist.text import Tokenizer
from kvist.text.guided import Guides

pytestmark = pytest.mark.model
SIZE = 49_152
QUESTION = [{"role": "user", "content": "Tell me of a person: Åsa Öberg, 31, a doctor from Malmö who likes 🦤 and trees."}]
GREEDY = SamplingParams(temperature=0, max_tokens=160)
DRAWN = SamplingParams(temperature=1.0, seed=7, max_tokens=160)

WORD = {"type": "string", "maxLength": 12}
AGE = {"type": "integer", "minimum": 0, "maximum": 150}
PERSON = {"type": "object", "properties": {"name": WORD, "age": AGE}, "required": ["name", "age"], "additionalProperties": False}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 2},
    {"type": "object", "properties": {"who": PERSON, "tags": {"type": "array", "items": {"enum": ["å", "🦤", "a\"b", "\\"]}, "maxItems": 3}}, "required": ["who", "tags"], "additionalProperties": False},
    {"enum": ["Malmö", 3, None, {"a": [1]}]},
    {"const": "Åsa \"Öberg\" 🦤"},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}, PERSON]},
    {"type": "string", "pattern": "^[A-ZÅÄÖ][a-zåäö]{2,9}$"},
    {"type": "string", "format": "date"},
    {"$defs": {"node": {"type": "object", "properties": {"name": {"maxLength": 3, "type": "string"}, "next": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 0}]}}, "required": ["name", "next"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    {"type": "object", "properties": {"żółć": WORD, "日本": {"type": "boolean"}}, "required": ["日本"], "additionalProperties": False},
    {"type": "array", "prefixItems": [AGE, WORD], "items": False, "minItems": 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(smollm2_path, kv_cache_memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture(scope="module")
def guides(llm: LLM) -> Guides:
    return llm.guides


def asked(params: SamplingParams = GREEDY, **wanted: Any) -> SamplingParams:
    return replace(params, structured_outputs=StructuredOutputs(**wanted))


def answer(llm: LLM, params: SamplingParams) -> tuple[str, str | None]:
    output = llm.chat(QUESTION, params)[0].outputs[0]
    return output.text, output.finish_reason


def follows(guides: Guides, text: str, **wanted: Any) -> bool:
    """Whether a text is all of an answer."""
    guide = guides.compile(StructuredOutputs(**wanted)).guide()
    tokens = guides._tokenizer.encode(text, add_special=False)
    return all(guide.accept(token) for token in tokens) and guide.accept(guides._ends[0])


@pytest.mark.parametrize("params", [GREEDY, DRAWN])
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_json_keeps_to_its_schema(llm: LLM, schema: dict[str, Any], params: SamplingParams) -> None:
    text, reason = answer(llm, asked(params, json=schema))
    assert reason == "stop"
    jsonschema_rs.validate(schema, json.loads(text))
    assert text == json.dumps(json.loads(text), ensure_ascii=False) or "\\" in text, "one line, as json.dumps has it"


def of_objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    named = st.dictionaries(st.text(st.characters(codec="utf-8", min_codepoint=32, max_codepoint=0x1FFFF), max_size=8), inner, max_size=3)
    objects = named.flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or [""])).map(
            lambda names: {"type": "object", "properties": properties, "required": sorted(names & set(properties)), "additionalProperties": False}
        )
    )
    arrays = st.tuples(inner, st.integers(0, 2)).map(lambda made: {"type": "array", "items": made[0], "minItems": made[1], "maxItems": 2})
    return objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some})


VALUES = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(st.characters(codec="utf-8", max_codepoint=0x1FFFF), max_size=6)
SMALL = st.recursive(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, AGE])
    | st.integers(0, 6).map(lambda size: {"type": "string", "maxLength": size})
    | st.tuples(st.integers(-99, 99), st.integers(0, 500)).map(lambda of: {"type": "integer", "minimum": of[0], "maximum": sum(of)})
    | st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    of_objects,
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=SMALL, seed=st.integers(0, 99))
def test_json_keeps_to_any_small_schema(llm: LLM, schema: dict[str, Any], seed: int) -> None:
    text, reason = answer(llm, asked(replace(DRAWN, seed=seed, max_tokens=400), json=schema))
    assert reason == "stop"
    jsonschema_rs.validate(schema, json.loads(text))


def test_any_object_a_regex_a_choice_and_a_grammar(llm: LLM) -> None:
    for params in (GREEDY, DRAWN):
        text, reason = answer(llm, asked(params, json_object=True))
        assert reason == "length" or isinstance(json.loads(text), dict)
        for pattern in (r"\d{4}-\d{2}-\d{2}", "(red|green|blue), [a-z]{1,8}", "[åäö🦤]{3}", ""):
            text, reason = answer(llm, asked(params, regex=pattern))
            assert re.fullmatch(pattern, text) and reason == "stop"
        for choice in (["Malmö", "Lund"], ["a \"quoted\"\nthing", "a"], ["🦤", "\\d", "/x/"], ["<|im_end|>", "<|im_start|>"]):
            text, reason = answer(llm, asked(params, choice=choice))
            assert text in choice and reason == "stop"
        text, reason = answer(llm, asked(params, grammar='start: greeting " " NAME\ngreeting: "Hej" | "Tja"\nNAME: /[A-Z][a-z]{1,5}/'))
        assert re.fullmatch("(Hej|Tja) [A-Z][a-z]{1,5}", text) and reason == "stop"


def test_special_tokens_are_no_text_but_a_grammar_may_name_them(llm: LLM) -> None:
    special = llm.tokenizer.special_tokens
    output = llm.chat(QUESTION, asked(choice=["<|im_start|>"]))[0].outputs[0]
    assert special["<|im_start|>"] not in output.token_ids and len(output.token_ids) > 2
    named = llm.chat(QUESTION, asked(grammar=f'start: <[{special["<|im_start|>"]}]> "a"'))[0].outputs[0]
    assert named.token_ids[0] == special["<|im_start|>"] and named.text == "a"


def test_it_is_cut_by_max_tokens_and_by_stop_strings(llm: LLM) -> None:
    whole, _ = answer(llm, asked(json=PERSON))
    text, reason = answer(llm, asked(replace(GREEDY, max_tokens=5), json=PERSON))
    assert reason == "length" and whole.startswith(text.rstrip("\ufffd")) and text != whole
    text, reason = answer(llm, asked(replace(GREEDY, stop=['"age']), json=PERSON))
    assert reason == "stop" and whole.startswith(text + '"age')
    least = asked(replace(GREEDY, min_tokens=100, ignore_eos=True), json=PERSON)
    assert answer(llm, least) == (whole, "stop")


MIXED = [
    asked(json=PERSON), asked(DRAWN, json=PERSON), asked(replace(DRAWN, seed=8, top_p=0.9), json=SCHEMAS[2]), GREEDY,
    asked(regex="[a-z ]{20,60}"), asked(replace(DRAWN, repetition_penalty=1.2, frequency_penalty=0.5), json=SCHEMAS[1]),
]  # fmt: skip


@pytest.fixture(scope="module")
def lone(llm: LLM) -> list[tuple[int, ...]]:
    """Each of MIXED alone, with nothing cached."""
    found = []
    for params in MIXED:
        llm.engine.manager.flush()
        found.append(llm.chat(QUESTION, params)[0].outputs[0].token_ids)
    return found


def together(llm: LLM) -> list[tuple[int, ...]]:
    ids = llm.chat_ids(QUESTION)
    return [output.outputs[0].token_ids for output in llm.generate([ids] * len(MIXED), MIXED)]


def test_the_same_text_in_a_batch_and_from_the_cache(llm: LLM, lone: list[tuple[int, ...]]) -> None:
    assert together(llm) == lone == together(llm)
    for params, tokens in zip(MIXED, lone, strict=True):
        assert tuple(chunk.token_id for chunk in llm.stream_chat(QUESTION, params)) == tokens
    with llm.session() as session:
        session.append(QUESTION)
        assert session.generate(MIXED[1]).outputs[0].token_ids == lone[1]


def test_the_same_text_after_preemptions(smollm2_path: Path) -> None:
    long = [asked(replace(DRAWN, seed=seed), regex="([a-z]{3,8} ){40}") for seed in range(4)]
    with LLM(smollm2_path, kv_cache_memory_bytes=24 * 16 * 23_040, max_model_len=320) as tight:
        ids = tight.chat_ids(QUESTION)
        lone = [tight.generate([ids], params)[0].outputs for params in long]
        assert tight.engine.scheduler.preemptions == 0
        assert [output.outputs for output in tight.generate([ids] * 4, long)] == lone
        assert tight.engine.scheduler.preemptions > 0


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_same_text_with_drafts(smollm2_path: Path, lone: list[tuple[int, ...]], adaptive: bool) -> None:
    config = {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 1, "adaptive": adaptive}
    with LLM(smollm2_path, kv_cache_memory_bytes=256 << 20, speculative_config=config) as drafting:
        assert together(drafting) == lone
        assert adaptive or drafting.engine.speculation.accepted_tokens > 0


def test_branches_keep_to_it_and_the_first_is_the_answer_alone(llm: LLM, lone: list[tuple[int, ...]]) -> None:
    outputs = llm.chat(QUESTION, replace(MIXED[1], n=4))[0].outputs
    assert outputs[0].token_ids == lone[1] and len({output.text for output in outputs}) > 1
    for output in outputs:
        jsonschema_rs.validate(PERSON, json.loads(output.text))


def test_beams_are_refused() -> None:
    with pytest.raises(UsageError, match="know no grammar"):
        BeamSearchParams(2, 5, structured_outputs=StructuredOutputs(regex="a"))  # type: ignore[arg-type]


# --- compiling


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        ({}, "exactly one of"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice"),
        ({"json": "{]"}, "no JSON schema"),
        ({"json": "[1]"}, "no schema"),
        ({"json": {"a": float("nan")}}, "no JSON schema"),
        ({"json": {"a": object()}}, "no JSON schema"),
        ({"json": 5}, "no JSON schema"),
        ({"json": '{"a":' * 5000 + "1" + "}" * 5000}, "no JSON schema"),
        ({"json_object": False}, "give True"),
        ({"regex": 5}, "give text"),
        ({"choice": []}, "1 to 4096"),
        ({"choice": "ab"}, "1 to 4096"),
        ({"choice": ["a", ""]}, "empty"),
        ({"choice": ["a", 5]}, "no text"),
        ({"regex": "\ud800"}, "Unicode"),
    ],
)
def test_what_cannot_be_meant_is_refused(wanted: dict[str, Any], cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        StructuredOutputs(**wanted)
    assert "\n" not in str(caught.value)


def test_from_a_json_object() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert structured_outputs({"json": schema}) == StructuredOutputs(json=schema) == StructuredOutputs(json=json.dumps(schema))
    assert hash(StructuredOutputs(json=schema)) and '"b": {}, "a"' in StructuredOutputs(json=schema).text
    with pytest.raises(UsageError, match="did you mean regex"):
        structured_outputs({"regexp": "a"})
    with pytest.raises(UsageError, match="give an object"):
        structured_outputs("json")
    with pytest.raises(UsageError, match="give a StructuredOutputs"):
        SamplingParams(structured_outputs={"json": schema})  # type: ignore[arg-type]


MANY = {"allOf": [{"type": "string", "pattern": f"^.*{i}.*$"} for i in range(65)]}
MULTIPLE = {"type": "integer", "multipleOf": 999_983}


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        ({"json": {"type": "strin"}}, "Invalid type: strin"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "Unsatisfiable"),
        ({"json": {"$ref": "#"}}, "no token of this model"),
        ({"json": {"$ref": "https://example.com/schema"}}, "not present in a registry"),
        ({"json": "false"}, "schema is false"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"grammar": "start: nothing"}, "unknown name"),
        ({"grammar": "hello"}, "grammar cannot be followed"),
        ({"regex": "a" * 65_537}, "over 65,536"),
        ({"json": {"enum": ["å" * 100] * 400}}, "over 65,536"),
        ({"json": MULTIPLE}, "multipleOf is 999983"),
        ({"json": {"not": {"items": [MULTIPLE]}}}, "multipleOf is 999983"),
        ({"grammar": "start: %json " + json.dumps(MULTIPLE)}, "multipleOf is 999983"),
        ({"json": {"type": "number", "multipleOf": 0.99991}}, "multipleOf is 0.99991"),
        ({"json": {"items": MANY}}, "65 members"),
        ({"grammar": "start: A\nA: " + " & ".join(["/a.*/"] * 66)}, "65 times &"),
        ({"json": '{"items":' * 150 + "{}" + "}" * 150}, "deep|recursion"),
    ],
)
def test_what_cannot_be_followed_is_refused(guides: Guides, wanted: dict[str, Any], cause: str) -> None:
    begin = time.monotonic()
    with pytest.raises(RequestError, match=cause) as caught:
        guides.compile(StructuredOutputs(**wanted))
    assert time.monotonic() - begin < 2
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def any_of(depth: int) -> dict[str, Any]:
    """Twice as much at each level, in few words."""
    level = lambda i, name: {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "object", "properties": {f"{name}{i}": WORD}}]}  # noqa: E731
    levels = {f"d{i}": {"allOf": [level(i, "x"), level(i, "y")]} for i in range(depth)}
    return {"$defs": {**levels, f"d{depth}": {"type": "object"}}, "$ref": "#/$defs/d0"}




@pytest.mark.parametrize(
    "wanted",
    [
        {"json": any_of(12)}, {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}, {"json": {"allOf": MANY["allOf"][1:]}},
        {"grammar": "start: A\nA: " + " & ".join(f"/(.*{c}.{{40}})/" for c in "abcdefgh")},
        {"grammar": "start: A\nA: " + " & ".join(f"/(.*{i}.*)/" for i in range(64))},
        {"json": {"type": "array", "items": AGE, "minItems": 10**6}}, {"json": {"type": "integer", "minimum": -(10**300)}},
    ],
)  # fmt: skip
def test_a_bomb_takes_no_longer_than_it_may(smollm2: Tokenizer, wanted: dict[str, Any]) -> None:
    """Refused, or compiled, within its time; and others go on to be compiled."""
    made = Guides(smollm2, SIZE, seconds=1.0)
    made.compile(StructuredOutputs(regex="first"))
    begin = time.monotonic()
    try:
        made.compile(StructuredOutputs(**wanted)).guide().mask()
    except RequestError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - begin < 1.5
    assert follows(made, "abc", regex="abc")


def test_slow_ones_are_given_up_and_not_many_at_once(smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    made, go_on, match = Guides(smollm2, SIZE, seconds=0.2), threading.Event(), Guides._match
    made.compile(StructuredOutputs(regex="first"))
    monkeypatch.setattr(Guides, "_match", lambda *given: go_on.wait(60) and match(*given))
    for number in range(2):
        with pytest.raises(RequestError, match=r"more than 0\.2 seconds"):
            made.compile(StructuredOutputs(regex=f"a{number}"))
    with pytest.raises(RequestError, match="try again later"):
        made.compile(StructuredOutputs(regex="a"))
    assert follows(made, "first", regex="first")  # which is kept
    go_on.set()
    made._seconds = 60.0
    assert follows(made, "a", regex="a")


def test_compiled_ones_are_kept_but_not_all(smollm2: Tokenizer) -> None:
    made = Guides(smollm2, SIZE, kept=2)
    first = made.compile(StructuredOutputs(regex="a"))
    second = made.compile(StructuredOutputs(regex="b"))
    assert made.compile(StructuredOutputs(regex="a")) is first
    made.compile(StructuredOutputs(regex="c"))
    assert made.compile(StructuredOutputs(regex="a")) is first
    assert made.compile(StructuredOutputs(regex="b")) is not second
    assert made.guide(None) is None


def test_guides_from_several_threads(guides: Guides) -> None:
    found: list[bool] = []
    work = lambda i: found.append(follows(guides, f'{{"a": {i}}}', json={"properties": {"a": {"const": i}}}))  # noqa: E731
    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


def test_masks_are_of_the_models_vocabulary_and_forks_go_their_own_way(smollm2: Tokenizer) -> None:
    wide = Guides(smollm2, SIZE + 40).compile(StructuredOutputs(regex="(?s).*")).guide()
    bits = np.unpackbits(wide.mask().view(np.uint8), bitorder="little")
    assert len(bits) == SIZE + 64 and not bits[SIZE:].any()
    assert np.nonzero(bits[:17])[0].tolist() == [2]  # no special token but the end
    guide = Guides(smollm2, SIZE).compile(StructuredOutputs(choice=["ab", "ac"])).guide()
    letter = {c: smollm2.encode(c, add_special=False)[0] for c in "abc"}
    assert guide.accept(letter["a"])
    other = guide.fork()
    assert other.accept(letter["b"]) and guide.accept(letter["c"])
    assert other.accept(2) and other.ended and not other.accept(2) and not guide.ended
    assert not guide.accept(letter["a"])


def test_a_grammar_that_goes_too_far_ends_the_answer_and_says_why(llm: LLM) -> None:
    """Ever more ways to read the text, the longer it gets: nothing that can be seen when it is compiled."""
    params = replace(GREEDY, max_tokens=300, min_tokens=300)
    output = llm.chat(QUESTION, asked(params, grammar='start: s\ns: "a" s "b" | s s | "a" | "b"'))[0].outputs[0]
    assert output.finish_reason == "abort" and "goes too far here" in str(output.stop_reason)
    assert set(output.text) <= {"a", "b"} and 20 < len(output.token_ids) < 300


def test_forced_text_is_in_tokens_whatever_it_is(smollm2: Tokenizer, sentence_piece: Tokenizer, lost: set[int]) -> None:
    """Text that looks like a special token, and such as the tokenizer has none for: no token of the mask is refused."""
    for tokenizer, texts in ((smollm2, ["<|im_start|>user", "a<|im_end|>", "\x01\x02", "ÿ🦤"]), (sentence_piece, ["hello", " hello", "</s>", "🦤"])):
        made = Guides(tokenizer, tokenizer.vocab_size)
        for text in texts:
            guide, tokens = made.compile(StructuredOutputs(choice=[text])).guide(), []
            while not guide.ended:
                bits = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")
                assert guide.failure is None
                tokens.append(int(bits.nonzero()[0][-1]))
                assert guide.accept(tokens[-1])
            assert tokenizer.decode(tokens[:-1], skip_special=False, continues=True) == text
            assert not any(map(tokenizer.is_special, tokens[:-1]))
    guide = Guides(smollm2, SIZE).compile(StructuredOutputs(choice=["a\x04b"])).guide()
    assert 0x04 in lost and guide.accept(smollm2.encode("a")[0])
    guide.mask()
    assert guide.failure is not None and "no token" in guide.failure


def test_a_model_without_an_end_is_refused(smollm2: Tokenizer) -> None:
    made = Guides(smollm2, 2)  # its end token is no logit
    with pytest.raises(UsageError, match="no end token"):
        made.compile(StructuredOutputs(regex="a"))
