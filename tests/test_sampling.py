"""Sampling for programs: what `LLM` makes of branches, stop strings, log-probabilities and beams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from kvist import LLM, BeamSearchParams, SamplingParams
from kvist.errors import UsageError
from kvist.text import Detokenizer

DRAWN = SamplingParams(temperature=1.0, seed=5, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tiny.write_folder(tiny.MODELS["llama"], tmp_path_factory.mktemp("sampling") / "llama")
    with LLM(folder, kv_cache_memory_bytes=8 << 20) as made:
        yield made


def text_of(llm: LLM, params: SamplingParams, prompt: str = "the hen") -> str:
    return llm.generate(prompt, params)[0].outputs[0].text


def certain(llm: LLM, ids: Sequence[int]) -> str:
    """Text without half a character at its end."""
    detokenizer = Detokenizer(llm.tokenizer, continues=True)
    return "".join(detokenizer.add(token) for token in ids)


def test_a_stop_string_ends_the_text_before_it(small: LLM) -> None:
    whole = small.generate("the hen", DRAWN)[0].outputs[0]
    for at in range(0, len(whole.text) - 4, 3):
        stop = whole.text[at : at + 3]
        begins = whole.text.find(stop)
        found = small.generate("the hen", replace(DRAWN, stop=["never there", stop]))[0]
        answer = found.outputs[0]
        assert answer.text == whole.text[:begins]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert stop in certain(small, answer.token_ids) and stop not in certain(small, answer.token_ids[:-1])
        assert found.metrics.generated_tokens == len(answer.token_ids)
        assert found.metrics.computed_tokens + found.metrics.cached_tokens == len(found.prompt_token_ids) + len(answer.token_ids) - 1  # fmt: skip
        assert text_of(small, replace(DRAWN, stop=stop, include_stop_str_in_output=True)) == whole.text[:begins] + stop


def test_chunks_of_a_stopped_answer_fold_to_it_and_take_nothing_back(small: LLM) -> None:
    whole = text_of(small, DRAWN)
    params = replace(DRAWN, stop=whole[20:25])
    chunks = list(small.stream("the hen", params))
    assert "".join(chunk.text for chunk in chunks) == text_of(small, params) == whole[: whole.find(whole[20:25])]
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].stop_reason == whole[20:25]
    assert not small.engine.has_work


def test_drafts_change_nothing_of_a_stopped_answer(tmp_path: Path, small: LLM) -> None:
    folder = tiny.write_folder(tiny.MODELS["llama"], tmp_path / "llama")
    greedy = SamplingParams(temperature=0.3, seed=2, max_tokens=60, ignore_eos=True, logprobs=1)
    whole = text_of(small, greedy)
    config = {"method": "ngram", "prompt_lookup_min": 1, "adaptive": False}
    with LLM(folder, kv_cache_memory_bytes=8 << 20, speculative_config=config) as drafting:
        for at in range(0, len(whole) - 2, 5):
            params = replace(greedy, stop=whole[at : at + 2], min_tokens=at // 4)
            found, plain = (llm.generate("the hen", params)[0] for llm in (drafting, small))
            assert found.outputs == plain.outputs
            assert found.metrics.generated_tokens == plain.metrics.generated_tokens
        assert drafting.engine.speculation is not None and drafting.engine.speculation.accepted_tokens > 0


def test_stop_tokens_have_no_text_unless_asked(small: LLM) -> None:
    whole = small.generate("the hen", DRAWN)[0].outputs[0]
    token = next(
        t for t in whole.token_ids[3:] if t not in whole.token_ids[:3] and small.tokenizer.decode([t]).isascii()
    )
    count = whole.token_ids.index(token) + 1
    for include in (False, True):
        params = replace(DRAWN, stop_token_ids=[token], include_stop_str_in_output=include)
        answer = small.generate("the hen", params)[0].outputs[0]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", token)
        assert answer.token_ids == whole.token_ids[:count]
        assert answer.text == small.tokenizer.decode(
            list(whole.token_ids[: count if include else count - 1]), continues=True
        )


def test_special_tokens_are_text_where_asked(small: LLM) -> None:
    params = replace(DRAWN, max_tokens=3, logit_bias={0: 100.0})  # <|start|>, a special token
    assert text_of(small, params) == ""
    assert text_of(small, replace(params, skip_special_tokens=False)) == "<|start|>" * 3


def test_answers_to_one_prompt_are_those_of_their_seeds(small: LLM) -> None:
    three = small.generate("the hen", replace(DRAWN, n=3))[0]
    assert [output.index for output in three.outputs] == [0, 1, 2]
    assert len({output.text for output in three.outputs}) == 3
    assert three.outputs[0] == small.generate("the hen", DRAWN)[0].outputs[0]
    second = three.outputs[1].text
    stops = small.generate("the hen", replace(DRAWN, n=3, stop=second[6:9]))[0].outputs
    assert stops[1].text == second[: second.find(second[6:9])] and stops[1].finish_reason == "stop"
    assert [chunk.index for chunk in small.stream("the hen", replace(DRAWN, n=2, max_tokens=2))] == [0, 1, 0, 1]


def test_the_best_of_several_are_returned(small: LLM) -> None:
    six = small.generate("the hen", replace(DRAWN, n=6, logprobs=0))[0].outputs
    ranked = sorted(six, key=lambda output: -(output.cumulative_logprob or 0.0))
    best = small.generate("the hen", replace(DRAWN, n=2, best_of=6, logprobs=0))[0].outputs
    assert best == tuple(replace(output, index=i) for i, output in enumerate(ranked[:2]))
    assert [output.index for output in ranked[:2]] != [0, 1]
    plain = small.generate("the hen", replace(DRAWN, n=2, best_of=6))[0].outputs
    assert [output.token_ids for output in plain] == [output.token_ids for output in best]
    assert plain[0].cumulative_logprob is None and plain[0].logprobs is None
    with pytest.raises(UsageError, match="best_of 6 of 2"):
        next(small.stream("the hen", replace(DRAWN, n=2, best_of=6)))
    assert not small.engine.has_work


def test_log_probabilities_have_vllms_shape(small: LLM) -> None:
    found = small.generate("the hen", replace(DRAWN, logprobs=2, prompt_logprobs=1, max_tokens=5))[0]
    answer, ids = found.outputs[0], found.prompt_token_ids
    assert answer.logprobs is not None and found.prompt_logprobs is not None
    assert len(answer.logprobs) == 5 and len(found.prompt_logprobs) == len(ids)
    assert found.prompt_logprobs[0] is None
    for token, at in [
        *zip(answer.token_ids, answer.logprobs, strict=True),
        *zip(ids[1:], found.prompt_logprobs[1:], strict=True),
    ]:
        assert at is not None and next(iter(at)) == token and 1 <= len(at) <= 3
        assert at[token].logprob == pytest.approx(at[token].logprob) and at[token].logprob < 0 < at[token].rank
        assert at[token].decoded_token == small.tokenizer.decode([token], skip_special=False, continues=True)
        ranks = [one.rank for one in at.values()]
        assert 1 in ranks
        best = sorted(at.values(), key=lambda one: one.rank)
        assert [one.logprob for one in best] == sorted((one.logprob for one in best), reverse=True)
    assert answer.cumulative_logprob == sum(
        at[token].logprob for token, at in zip(answer.token_ids, answer.logprobs, strict=True)
    )
    assert small.generate("the hen", DRAWN)[0].prompt_logprobs is None


def test_beams_for_programs(small: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True)
    one, two = small.beam_search(["the hen", small.tokenizer.encode("a rose")], params)
    ids = tuple(small.tokenizer.encode("the hen"))
    assert len(one.sequences) == len(two.sequences) == 3
    for sequence in one.sequences:
        assert sequence.tokens[: len(ids)] == ids and len(sequence.tokens) == len(ids) + 6
        assert sequence.text == "the hen" + sequence.answer_text
        assert sequence.score == sequence.cum_logprob / 6
        # its log-probability is that of its tokens, read back as a prompt
        read = small.generate(list(sequence.tokens), SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))[0]
        assert read.prompt_logprobs is not None
        own = [
            at[token].logprob for token, at in zip(sequence.tokens, read.prompt_logprobs, strict=True) if at is not None
        ]
        total = 0.0
        for logprob in own[len(ids) - 1 :]:
            total += logprob
        assert sequence.cum_logprob == total
    scores = [sequence.score for sequence in one.sequences]
    assert scores == sorted(scores, reverse=True)
    greedy = small.generate("the hen", SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))[0].outputs[0]
    assert small.beam_search("the hen", replace(params, beam_width=1))[0].sequences[0].tokens == (
        *ids,
        *greedy.token_ids,
    )
    assert not small.engine.has_work
