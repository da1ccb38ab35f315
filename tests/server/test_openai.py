"""OpenAI's own client against a real server: what it gets is what the library says."""

from __future__ import annotations

import openai
import pytest

from kvist import LLM, SamplingParams
from serving import Served

pytestmark = pytest.mark.model

MESSAGES = [{"role": "user", "content": "Name three trees of the north."}]
OTHER = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "What is a twig?"}]


def said(llm: LLM, messages: list[dict[str, str]], **params: object) -> str:
    return llm.chat(messages, SamplingParams(**params))[0].outputs[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-7")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("messages", [MESSAGES, OTHER])
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 7}, {"temperature": 1.0, "top_p": 0.9, "seed": 1}]
)
def test_a_chat_is_what_the_library_says(
    client: openai.OpenAI, llm: LLM, messages: list[dict[str, str]], sampling: dict[str, float]
) -> None:
    whole = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=24, **sampling)
    choice = whole.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == said(llm, messages, max_tokens=24, **sampling)
    assert whole.usage.prompt_tokens == len(llm.chat_ids(messages))
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_a_stream_is_the_whole(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    so_far = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
    )
    counts = [chunk.usage.completion_tokens for chunk in so_far if chunk.usage is not None]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == whole.usage.completion_tokens
    without = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_usage_says_what_was_cached(client: openai.OpenAI, served: Served) -> None:
    with served.client() as http:
        http.post("/cache/flush")
    text = "The river was long and the valley was green. " * 12
    asked = {"model": "smollm2", "max_tokens": 24, "temperature": 0}  # the page of the prompt's end gets full
    cold = client.completions.create(prompt=text + "One is green", **asked)
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    assert cold.model_extra["kvist"]["cached_tokens_by_tier"] == {"memory": 0}
    warm = client.completions.create(prompt=text + "One is green", **asked)
    assert warm.usage.prompt_tokens_details.cached_tokens == warm.usage.prompt_tokens - 1
    assert warm.model_extra["kvist"]["reason"] == "full" and warm.choices[0].text == cold.choices[0].text
    partial = client.completions.create(prompt=text + "Two is green", **asked)
    told = partial.model_extra["kvist"]
    assert told["reason"] == "partial"
    assert (told["first_difference"]["cached_text"], told["first_difference"]["asked_text"]) == (" One", " Two")
    assert told["cached_tokens_by_tier"]["memory"] == told["first_difference"]["position"]
    assert partial.usage.prompt_tokens_details.cached_tokens == told["first_difference"]["position"]


def test_logprobs_of_a_chat(client: openai.OpenAI, llm: LLM) -> None:
    asked = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    own = llm.chat(MESSAGES, SamplingParams(max_tokens=8, temperature=0, logprobs=3))[0].outputs[0]
    content = whole.choices[0].logprobs.content
    assert [one.token for one in content] == [next(iter(found.values())).decoded_token for found in own.logprobs]
    assert [one.logprob for one in content] == [next(iter(found.values())).logprob for found in own.logprobs]
    for one in content:
        assert len(one.top_logprobs) == 3 and one.top_logprobs[0].token == one.token  # greedy
        assert bytes(one.bytes).decode() == one.token
        rated = [other.logprob for other in one.top_logprobs]
        assert rated == sorted(rated, reverse=True)
    streamed = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=True)
    found = [one for chunk in streamed if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert found == content
    plain = client.chat.completions.create(**asked, logprobs=True)
    assert all(one.top_logprobs == [] for one in plain.choices[0].logprobs.content)


def test_logprobs_of_a_completion_in_the_older_shape(client: openai.OpenAI, llm: LLM) -> None:
    prompt = "The capital of Sweden is"
    asked = {"model": "smollm2", "prompt": prompt, "temperature": 0}
    rated = client.completions.create(**asked, max_tokens=0, echo=True, logprobs=2).choices[0]
    ids = llm.tokenizer.encode(prompt)
    own = llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=2))[0].prompt_logprobs
    assert rated.text == prompt and "".join(rated.logprobs.tokens) == prompt
    assert len(rated.logprobs.tokens) == len(ids)
    assert rated.logprobs.token_logprobs == [None, *(next(iter(found.values())).logprob for found in own[1:])]
    assert rated.logprobs.top_logprobs[0] is None and all(len(top) == 2 for top in rated.logprobs.top_logprobs[1:])
    for token, offset in zip(rated.logprobs.tokens, rated.logprobs.text_offset, strict=True):
        assert prompt[offset : offset + len(token)] == token
    both = client.completions.create(**asked, max_tokens=3, echo=True, logprobs=2).choices[0]
    assert both.text.startswith(prompt) and "".join(both.logprobs.tokens) == both.text
    assert both.logprobs.token_logprobs[: len(ids)] == rated.logprobs.token_logprobs
    for token, offset in zip(both.logprobs.tokens, both.logprobs.text_offset, strict=True):
        assert both.text[offset : offset + len(token)] == token


def test_prompts_as_lists(client: openai.OpenAI, llm: LLM) -> None:
    texts = ["The sky is", "Water is", "A tree has"]
    asked = {"model": "smollm2", "max_tokens": 6, "temperature": 0}
    many = client.completions.create(prompt=texts, **asked)
    ids = [llm.tokenizer.encode(text) for text in texts]
    alone = [client.completions.create(prompt=text, **asked).choices[0].text for text in texts]
    assert [choice.text for choice in many.choices] == alone
    assert [choice.text for choice in client.completions.create(prompt=ids, **asked).choices] == alone
    assert client.completions.create(prompt=ids[1], **asked).choices[0].text == alone[1]
    assert many.usage.prompt_tokens == sum(map(len, ids))
    found = dict.fromkeys(range(3), "")
    for chunk in client.completions.create(prompt=texts, stream=True, **asked):
        for choice in chunk.choices:
            found[choice.index] += choice.text
    assert [found[i] for i in range(3)] == alone


def test_n_best_of_and_beams(client: openai.OpenAI, llm: LLM) -> None:
    asked = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.9, "seed": 3}
    own = llm.generate("Once upon a time", SamplingParams(max_tokens=8, temperature=0.9, seed=3, n=3))[0]
    many = client.completions.create(**asked, n=3)
    assert [choice.text for choice in many.choices] == [answer.text for answer in own.outputs]
    found = dict.fromkeys(range(3), "")
    for chunk in client.completions.create(**asked, n=3, stream=True):
        found[chunk.choices[0].index] += chunk.choices[0].text
    assert list(found.values()) == [answer.text for answer in own.outputs]
    best = client.completions.create(**asked, n=1, best_of=4).choices[0].text
    assert best in [choice.text for choice in client.completions.create(**asked, n=4).choices]
    beams = client.completions.create(
        model="smollm2", prompt="Once upon a time", max_tokens=6, n=4, extra_body={"use_beam_search": True}
    )
    from kvist import BeamSearchParams

    expected = llm.beam_search("Once upon a time", BeamSearchParams(4, 6))[0].sequences
    assert [choice.text for choice in beams.choices] == [one.answer_text for one in expected]
    searched = {"use_beam_search": True, "length_penalty": 2.0, "early_stopping": True}
    chat = client.chat.completions.create(
        model="smollm2", messages=MESSAGES, max_tokens=4, n=2, extra_body=searched
    )
    params = BeamSearchParams(2, 4, length_penalty=2.0, early_stopping=True)
    expected = llm.beam_search(llm.chat_ids(MESSAGES), params)[0].sequences
    assert [choice.message.content for choice in chat.choices] == [one.answer_text for one in expected]


def test_stops_biases_and_what_vllm_has(client: openai.OpenAI, llm: LLM) -> None:
    whole = client.completions.create(model="smollm2", prompt="One, two,", max_tokens=20, temperature=0).choices[0]
    word = whole.text[6:9]
    cut = client.completions.create(
        model="smollm2", prompt="One, two,", max_tokens=20, temperature=0, stop=["\0", word]
    ).choices[0]
    assert cut.text == whole.text[: whole.text.index(word)] and cut.finish_reason == "stop"
    assert cut.model_extra["stop_reason"] == word
    kept = client.completions.create(
        model="smollm2", prompt="One, two,", max_tokens=20, temperature=0, stop=word,
        extra_body={"include_stop_str_in_output": True},
    )  # fmt: skip
    assert kept.choices[0].text == cut.text + word
    first = llm.tokenizer.encode(whole.text)[0]
    biased = client.completions.create(
        model="smollm2", prompt="One, two,", max_tokens=1, temperature=0, logit_bias={str(first): -100}
    )
    assert not biased.choices[0].text.startswith(llm.tokenizer.decode([first], continues=True))
    known = client.completions.create(
        model="smollm2", prompt="One, two,", max_tokens=5, temperature=1, seed=5,
        extra_body={"top_k": 1, "repetition_penalty": 1.0, "ignore_eos": True, "min_tokens": 5, "return_token_ids": True},
    )  # fmt: skip
    assert known.choices[0].text == whole.text[: len(known.choices[0].text)]
    assert len(known.choices[0].model_extra["token_ids"]) == 5


def test_responses(client: openai.OpenAI, llm: LLM) -> None:
    expected = said(llm, OTHER, max_tokens=16, temperature=0)
    whole = client.responses.create(
        model="smollm2", instructions="You are brief.", input="What is a twig?", max_output_tokens=16, temperature=0
    )
    assert whole.output_text == expected and whole.status == "incomplete"
    assert whole.usage.output_tokens == 16
    listed = client.responses.create(
        model="smollm2", max_output_tokens=16, temperature=0,
        input=[OTHER[0], {"role": "user", "content": [{"type": "input_text", "text": "What is a twig?"}]}],
    )  # fmt: skip
    assert listed.output_text == expected
    kinds, text = [], ""
    for event in client.responses.create(
        model="smollm2", input=OTHER, max_output_tokens=16, temperature=0, stream=True
    ):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == expected
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, None),
        ({"max_tokens": 10**6}, None),
        ({"stop": ["a"] * 50}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"cache_salt": ""}, "cache_salt"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, object], param: str | None
) -> None:
    asked = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 4}
    known = {name: value for name, value in fields.items() if name in asked}
    extra = {name: value for name, value in fields.items() if name not in asked}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**asked, **known}, extra_body=extra)
    error = refused.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert error["message"]


BEAMS = {"use_beam_search": True, "max_tokens": 3, "n": 2}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("responses", {"top_logprobs": 2}, "top_logprobs"),
        ("responses", {"tools": [{"type": "web_search"}]}, "tools"),
        ("responses", {"tool_choice": "required"}, "tool_choice"),
        ("responses", {"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ("responses", {"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ("responses", {"input": [{"role": "", "content": "Hi"}]}, "input"),
        ("responses", {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input"),
        ("responses", {"input": [{"type": "function_call_output", "call_id": [], "output": "x"}]}, "input"),
        ("responses", {"text": {"verbosity": "low"}}, "text.verbosity"),
        ("responses", {"reasoning": {"effort": "high"}}, "reasoning"),
        ("responses", {"max_tokens": 3}, "max_tokens"),
        ("responses", {"seed": 0}, "seed"),
        ("chat/completions", {"best_of": 2}, "best_of"),
        ("chat/completions", {"echo": True}, "echo"),
        ("chat/completions", {"length_penalty": 2}, "length_penalty"),
        ("chat/completions", {"early_stopping": "never"}, "early_stopping"),
        ("chat/completions", {**BEAMS, "logprobs": True}, "logprobs"),
        ("chat/completions", {**BEAMS, "stream": True}, "stream"),
        ("chat/completions", {**BEAMS, "response_format": {"type": "json_object"}}, "response_format"),
        ("completions", {"tools": [{"type": "function"}]}, "tools"),
        ("completions", {"length_penalty": 0}, "length_penalty"),
        ("completions", {"early_stopping": True}, "early_stopping"),
        ("completions", {**BEAMS, "temperature": 0.5}, "temperature"),
        ("completions", {**BEAMS, "top_p": 0.5}, "top_p"),
        ("completions", {**BEAMS, "top_k": 5}, "top_k"),
        ("completions", {**BEAMS, "min_p": 0.1}, "min_p"),
        ("completions", {**BEAMS, "typical_p": 0.5}, "typical_p"),
        ("completions", {**BEAMS, "repetition_penalty": 1.1}, "repetition_penalty"),
        ("completions", {**BEAMS, "presence_penalty": 1}, "presence_penalty"),
        ("completions", {**BEAMS, "frequency_penalty": 1}, "frequency_penalty"),
        ("completions", {**BEAMS, "logit_bias": {"5": 1}}, "logit_bias"),
        ("completions", {**BEAMS, "seed": 0}, "seed"),
        ("completions", {**BEAMS, "best_of": 2}, "best_of"),
        ("completions", {**BEAMS, "min_tokens": 2}, "min_tokens"),
        ("completions", {**BEAMS, "stop": "a"}, "stop"),
        ("completions", {**BEAMS, "stop_token_ids": [5]}, "stop_token_ids"),
        ("completions", {**BEAMS, "logprobs": 0}, "logprobs"),
        ("completions", {**BEAMS, "return_token_ids": True}, "return_token_ids"),
        ("completions", {**BEAMS, "structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(
    served: Served, path: str, fields: dict[str, object], param: str
) -> None:
    asked = {"completions": {"prompt": "Hi"}, "responses": {"input": "Hi"}, "chat/completions": {"messages": MESSAGES}}
    with served.client() as http:
        found = http.post(f"/v1/{path}", json={**asked[path], **fields})
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param and param in error["message"]


def test_values_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    neutral = {
        "top_k": -1, "min_p": 0, "typical_p": 1, "repetition_penalty": 1, "min_tokens": 0, "stop_token_ids": [],
        "return_token_ids": False, "length_penalty": 1, "early_stopping": False,
    }  # fmt: skip
    asked = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 4, "n": 2}
    plain = client.completions.create(**asked, extra_body={"use_beam_search": True})
    for temperature in (0, 1):
        given = client.completions.create(
            **asked, temperature=temperature, top_p=1, presence_penalty=0, frequency_penalty=0, logit_bias={}, stop=[],
            logprobs=None, seed=None, stream=False, extra_body={"use_beam_search": True, **neutral},
        )  # fmt: skip
        assert given.choices == plain.choices
    client.chat.completions.create(
        model="smollm2", messages=MESSAGES, max_tokens=2, n=2, temperature=0, logprobs=False, tools=[],
        response_format={"type": "text"}, extra_body={"use_beam_search": True},
    )  # fmt: skip
    client.responses.create(
        model="smollm2", input="Hi", max_output_tokens=2, tools=[], tool_choice="auto", parallel_tool_calls=True,
        top_logprobs=0, reasoning={}, text={"verbosity": "medium"}, store=False, truncation="disabled",
    )  # fmt: skip


def test_unknown_fields_are_tolerated_and_labels_too(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="smollm2", messages=MESSAGES, max_tokens=1, user="me", metadata={"a": "b"}, store=False,
        extra_body={"something_new": {"x": [1]}},
    )  # fmt: skip


def test_a_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="smollm2", prompt=[1] * 9000, max_tokens=4)
    assert "9000" in refused.value.message and "8192" in refused.value.message
    assert refused.value.code == "context_length_exceeded"


def test_another_model_is_not_here(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-7", messages=MESSAGES)
    assert refused.value.code == "model_not_found" and "smollm2" in refused.value.message


def test_a_stream_that_is_left_frees_its_pages(client: openai.OpenAI, served: Served) -> None:
    stream = client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=4000, stream=True)
    for number, _ in enumerate(stream):
        if number == 3:
            break
    stream.close()
    assert served.settled(2)["pages"]["live"] == 0
