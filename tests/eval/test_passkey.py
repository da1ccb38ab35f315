"""Passkeys: the key is where it is said to be, and the answer is what the engine would generate."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvist import LLM, SamplingParams
from kvist.eval import passkey
from kvist.eval.method import REFERENCE
from kvist.eval.passkey import ANSWER, DEPTHS, FILLER, MARGIN, OPENING, QUESTION, answer, haystack, prompt, retrieved


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("length", [MARGIN + 1, 400, 1000])
def test_the_key_is_where_it_is_said_to_be(length: int) -> None:
    every = [haystack(length, depth, 3, words) for depth in range(DEPTHS)]
    filler = list(every[0].sentences[1:])
    assert every[0].place == 0 and every[-1].place == len(filler) == len(every[-1].sentences) - 1
    for depth, one in enumerate(every):
        assert one.sentences[one.place] == f"The pass key is {one.key}. Remember it."
        assert list(one.sentences[: one.place] + one.sentences[one.place + 1 :]) == filler
        assert abs(one.place - depth / 9 * len(filler)) <= 0.5
        assert len(one.key) == 5 and one.text.count(one.key) == 1 and one.text.startswith(OPENING)
        assert sum(map(words, filler)) <= length - MARGIN
    assert sum(map(words, filler)) > length - MARGIN - max(map(words, FILLER))


def test_seeds_and_depths_have_keys_and_orders_of_their_own() -> None:
    keys = {haystack(500, depth, seed, words).key for depth in range(DEPTHS) for seed in range(5)}
    assert len(keys) == 5 * DEPTHS
    assert haystack(500, 4, 1, words) == haystack(500, 4, 1, words)
    assert haystack(500, 4, 1, words).sentences[:3] != haystack(500, 4, 2, words).sentences[:3]


@pytest.mark.parametrize("template", [True, False])
def test_the_question_comes_behind_the_context(llm: LLM, template: bool) -> None:
    tokenizer = llm.tokenizer
    if not template:
        tokenizer.chat_template = None
    hidden = haystack(MARGIN + 30, 5, 0, words)
    context, question = (tokenizer.decode(ids, skip_special=False) for ids in prompt(hidden, tokenizer))
    assert hidden.text in context and QUESTION not in context
    assert QUESTION in question and question.endswith("The pass key is") and hidden.key not in question
    assert ("assistant" in question) == template


@pytest.mark.parametrize("budget", [7, 64])
def test_answers_are_the_engines_own_greedy_ones_hit_or_miss(llm: LLM, budget: int) -> None:
    context, question = llm.tokenizer.encode("the hen sat on the mat " * 6), llm.tokenizer.encode("and then")
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    expected = list(llm.generate([[*context, *question]], params)[0].outputs[0].token_ids)
    with REFERENCE.engine(llm, enable_prefix_caching=True) as engine:
        assert [answer(engine, context, question, budget) for _ in range(2)] == [expected] * 2
        assert engine.manager.counters.prefix_hits > 0 and not engine.manager.tables


def test_what_counts_is_the_key_in_the_answer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def knowing(engine: object, context: list[int], question: list[int], budget: int) -> list[int]:
        told.append(len(told))
        hidden = haystack(200, told[-1], 0, lambda text: len(llm.tokenizer.encode(text, add_special=False)))
        return llm.tokenizer.encode(f" {hidden.key}." if told[-1] % 3 else " 12345.")

    monkeypatch.setattr(passkey, "answer", knowing)
    assert retrieved(llm.engine, llm.tokenizer, 200, DEPTHS, 0, 64) == [depth % 3 != 0 for depth in range(DEPTHS)]


@pytest.mark.model
def test_a_real_model_finds_most_keys_of_a_short_text(smollm2_path: Path) -> None:
    with LLM(smollm2_path, max_model_len=512, kv_cache_memory_bytes=64 << 20) as real:
        assert sum(retrieved(real.engine, real.tokenizer, 400, DEPTHS, 0, 512)) >= 7
