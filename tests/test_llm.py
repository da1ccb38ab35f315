"""`LLM`, on the real model and on a tiny one: text in, text out, and every way to ask gives the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist import LLM, BeamSearchParams, Request, SamplingParams, StructuredOutputs
from kvist.errors import RequestError, UnknownNameError, UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=12)
QUESTION = [{"role": "user", "content": "What is the capital of Sweden?"}]


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    path: Path = request.getfixturevalue("smollm2_path")
    with LLM(path, kv_cache_memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture
def small(tmp_path: Path) -> Iterator[LLM]:
    with LLM(tiny.write_folder(tiny.MODELS["llama"], tmp_path / "llama"), kv_cache_memory_bytes=8 << 20) as made:
        yield made


@pytest.mark.model
def test_a_real_model_answers(llm: LLM) -> None:
    output = llm.generate("The capital of Sweden is", GREEDY)[0]
    assert output.outputs[0].text.startswith(" Stockholm")
    assert output.prompt == "The capital of Sweden is"
    assert output.finished
    assert len(output.outputs[0].token_ids) == 12
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.model
def test_a_chat_ends_by_itself_and_its_end_token_has_no_text(llm: LLM) -> None:
    output = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=200))[0]
    assert "Stockholm" in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].token_ids[-1] in llm.tokenizer.eos_ids
    assert "<|im_end|>" not in output.outputs[0].text


@pytest.mark.model
def test_chunks_fold_to_the_whole_answer(llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=40)
    chunks = list(llm.stream("Write a poem about ñandúes 🦤 and twigs:\n", params))
    whole = llm.generate("Write a poem about ñandúes 🦤 and twigs:\n", params)[0]
    assert "".join(chunk.text for chunk in chunks) == whole.outputs[0].text
    assert tuple(chunk.token_id for chunk in chunks) == whole.outputs[0].token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.model
def test_logits_of_more_tokens_than_a_window_has_pages(tmp_path: Path) -> None:
    folder = tiny.write_folder(replace(tiny.MODELS["mistral"], positions=512), tmp_path / "mistral")
    ids = [i * i % 300 for i in range(400)]
    sizes = {"max_num_seqs": 1, "max_num_batched_tokens": 32, "kv_cache_dtype": "f32"}
    with LLM(folder, **sizes) as roomy, LLM(folder, **sizes, kv_cache_memory_bytes=12 * 16 * 768) as tight:
        assert tight.engine.manager.groups[0].num_pages < 400 // 16
        assert np.array_equal(roomy.logits(ids).view(np.uint32), tight.logits(ids).view(np.uint32))


def test_logits_are_the_same_bits_on_a_miss_and_on_hits(llm: LLM) -> None:
    ids = llm.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 12)
    llm.engine.manager.flush()
    miss = llm.logits(ids)
    assert miss.shape == (len(ids), 49152)
    before = llm.engine.manager.counters.prefix_hits
    hit = llm.logits(ids)
    assert llm.engine.manager.counters.prefix_hits > before
    assert np.array_equal(miss.view(np.uint32), hit.view(np.uint32))
    part = llm.logits([*ids[:37], 5, 6])
    assert np.array_equal(miss[:37].view(np.uint32), part[:37].view(np.uint32))
    assert (
        llm.generate(ids, SamplingParams(temperature=0, max_tokens=1))[0].outputs[0].token_ids[0] == miss[-1].argmax()
    )


def test_prompts_of_every_kind(small: LLM) -> None:
    one = small.generate("abc", GREEDY)
    ids = small.generate(small.tokenizer.encode("abc"), GREEDY)
    several = small.generate(
        ["abc", small.tokenizer.encode("abc"), "xyz"], [GREEDY, GREEDY, SamplingParams(temperature=0, max_tokens=3)]
    )
    assert len(one) == len(ids) == 1
    assert one[0].outputs == ids[0].outputs == several[0].outputs == several[1].outputs
    assert ids[0].prompt is None
    assert len(several[2].outputs[0].token_ids) <= 3
    assert small.generate([]) == []


def test_a_refused_prompt_leaves_nothing_of_the_others(small: LLM) -> None:
    with pytest.raises(RequestError, match="max_model_len"):
        small.generate(["abc", "x" * 3000], GREEDY)
    assert not small.engine.has_work
    with pytest.raises(UsageError, match="2 prompts and 1"):
        small.generate(["a", "b"], [GREEDY])
    with pytest.raises(RequestError, match="0 tokens"):
        small.logits([])
    with pytest.raises(RequestError, match="vocabulary of 300"):
        small.logits([1, 300])


def test_the_uncached_baseline_gives_the_same_text(tmp_path: Path, small: LLM) -> None:
    folder = tiny.write_folder(tiny.MODELS["llama"], tmp_path / "again")
    with LLM(folder, enable_cache=False, kv_cache_memory_bytes=8 << 20) as uncached:
        assert uncached.generate("abcdef", GREEDY)[0].outputs == small.generate("abcdef", GREEDY)[0].outputs
        assert uncached.engine.runner.kv_projections > small.engine.runner.kv_projections


def test_closing_twice_and_a_wrong_option(tmp_path: Path, small: LLM) -> None:
    small.close()
    small.close()
    with pytest.raises(UnknownNameError, match="page_size"):
        LLM(tmp_path, page_sise=16)


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    folder = tiny.write_folder(tiny.MODELS["gpt2"], tmp_path / "gpt2")
    for file in folder.glob("chat_template*"):
        file.unlink()
    with LLM(folder, kv_cache_memory_bytes=8 << 20) as llm:
        llm.tokenizer.chat_template = None
        with pytest.raises(UsageError, match="no chat template"):
            llm.chat(QUESTION)


ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
LONG = "the hen and the cat sat on the mat and the hen sang to the cat of a mat that was red"


def test_the_first_difference_is_reported_with_its_text(small: LLM) -> None:
    ids = small.tokenizer.encode(LONG)
    small.generate(ids, ONE)
    other = [*ids[:20], (ids[20] + 1) % 200 + 50, *ids[21:]]
    reports = [small.generate(other, ONE)[0].metrics.reuse, list(small.stream([*ids, 7], ONE))[-1].metrics.reuse]
    found = reports[0].first_difference
    assert (reports[0].reason, reports[0].cached, reports[0].computed) == ("partial", {"memory": 20}, len(ids) - 20)
    assert (found.position, found.cached_token, found.asked_token) == (20, ids[20], other[20])
    decode = small.tokenizer.decode
    assert found.cached_text == decode([ids[20]], skip_special=False, continues=True)
    assert found.asked_text == decode([other[20]], skip_special=False, continues=True)
    assert found.cached_text != found.asked_text
    assert reports[1].reason in ("full", "partial") and reports[1].first_difference is None


def test_salts_separate_and_tell_nothing_of_each_other(small: LLM) -> None:
    small.generate(LONG, ONE)
    ask = lambda text, salt: small.generate(text, ONE, cache_salt=salt)[0].metrics.reuse  # noqa: E731
    first, again, other = ask(LONG, "mine"), ask(LONG, "mine"), ask(LONG.replace("hen", "dog"), "mine")
    assert (first.reason, first.cached["memory"], first.first_difference) == ("salt", 0, None)
    assert again.reason == "full" and other.reason == "partial"
    for wrong in ("", 5, b"x"):
        with pytest.raises(UsageError, match="cache_salt"):
            small.generate(LONG, ONE, cache_salt=wrong)
    assert not small.engine.has_work
    assert ask(LONG, "\ud800").reason == "salt"  # any text is a salt


def test_pins_and_priorities_reach_the_engine(small: LLM) -> None:
    output = small.generate(LONG, ONE, pin=True, priority=-3)[0]
    pinned = len(output.prompt_token_ids) // 16
    assert small.engine.manager.stats().pinned == pinned > 0
    small.engine.manager.flush()
    assert small.generate(LONG, ONE)[0].metrics.cached_tokens >= pinned * 16 - 1
    assert small.unpin(output.request_id) == pinned
    list(small.stream(LONG, ONE, pin=True))
    assert small.unpin() == pinned
    two = small.generate([LONG, "abc"], ONE, priority=[1, -1])
    assert two[1].metrics.started_time < two[0].metrics.started_time
    with pytest.raises(UsageError, match="2 prompts and 1 priorities"):
        small.generate([LONG, "abc"], ONE, priority=[1])
    with pytest.raises(UsageError, match="priority"):
        list(small.stream(LONG, ONE, priority=10**6))
    before = small.engine.manager.counters.prefix_hits
    beams = small.beam_search(LONG, BeamSearchParams(2, 3), cache_salt="apart", priority=1)[0]
    assert beams.metrics.reuse.reason == "salt" and small.engine.manager.counters.prefix_hits == before


def test_each_of_many_requests_has_a_priority_a_salt_and_a_pin_of_its_own(small: LLM) -> None:
    small.generate(LONG, ONE)
    asked = [(LONG, ONE), Request(LONG, ONE, cache_salt="mine"), Request("abc", ONE, priority=-1, pin=True)]
    plain, salted, first = small.generate_each(asked)
    assert (plain.metrics.reuse.reason, salted.metrics.reuse.reason) == ("full", "salt")
    assert plain.outputs == salted.outputs
    assert first.metrics.started_time < plain.metrics.started_time
    assert small.engine.manager.pins.names == [first.request_id]


def test_tools_reach_the_template_and_structured_outputs_the_answer(small: LLM) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    with pytest.raises(UsageError, match="takes no tools"):
        small.chat(QUESTION, GREEDY, tools=tools)
    small.tokenizer.chat_template = "{{ tools | tojson if tools else 'none' }}{{ messages[0].content }}"
    assert small.tokenizer.decode(small.chat_ids(QUESTION, tools)).startswith('[{"type": "function"')
    assert small.tokenizer.decode(small.chat_ids(QUESTION, [])).startswith("none")
    params = replace(GREEDY, max_tokens=30, structured_outputs=StructuredOutputs(choice=["hen", "the cat"]))
    asked = small.chat(QUESTION, params, tools=tools)[0]
    assert asked.prompt_token_ids == small.chat_ids(QUESTION, tools)
    assert asked.outputs[0].text in ("hen", "the cat") and asked.outputs[0].finish_reason == "stop"
    chunks = list(small.stream_chat(QUESTION, params, tools=tools))
    assert "".join(chunk.text for chunk in chunks) == asked.outputs[0].text
