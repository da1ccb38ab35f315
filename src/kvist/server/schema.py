"""Requests as clients send them: OpenAI's fields, and vLLM's beyond them.

Fields nobody knows are tolerated. A field that kvist knows and cannot do is in `REFUSED`, or in `ELSEWHERE` where only
some routes have it, with the values that ask for nothing: any other gets a 400 that names it. Nothing is ignored
silently, but labels that no answer depends on: `user`, `safety_identifier`, `metadata`, `service_tier` and
`prompt_cache_key`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvist.server.failures import ApiError

Token = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Salt = Annotated[str, Field(min_length=1, max_length=4096)]
Stop = str | Annotated[list[str], Field(max_length=64)]

Fields = Mapping[str, tuple[object, ...]]
"""Names, each with the values that ask for nothing, beside null."""

CHOOSING: Fields = {  # how the tokens of an answer are chosen one by one, and what is told of each
    "temperature": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "seed": (),
    "best_of": (),
    "min_tokens": (0,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "return_token_ids": (False,),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
    "tools": ([],),
}
BEAMS: Fields = {"length_penalty": (1,), "early_stopping": (False,)}  # how beams are searched
ELSEWHERE: Fields = {  # of answers, but not on each of the routes that give them
    **CHOOSING,
    **BEAMS,
    "use_beam_search": (False,),
    "n": (1,),
    "echo": (False,),
    "ignore_eos": (False,),
    "max_tokens": (),
    "max_completion_tokens": (),
    "max_output_tokens": (),
    "messages": (),
    "prompt": (),
    "input": (),
    "instructions": (),
    "session": (),
    "text": ({},),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "stream_options": ({}, {"include_usage": True}, {"include_obfuscation": False}),
}
REFUSED: Fields = {
    "reasoning": ({},),
    "audio": (),
    "functions": (),
    "function_call": ("none",),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
    "suffix": ("",),
    "lora_request": (),
    "mm_processor_kwargs": (),
    "chat_template": (),  # a template from a client would be a program from a stranger
    "truncate_prompt_tokens": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": (),
    "thinking_token_budget": (),
    "background": (False,),
    "previous_response_id": (),
    "conversation": (),
    "prompt_template": (),
    "include": ([],),
    "truncation": ("disabled",),
    "max_tool_calls": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "guided_json": (),  # vLLM's older names of structured_outputs
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "prompt_logprobs": (),
    "kv_transfer_params": (),
}


class Asked(BaseModel):
    """Any request body. Numbers are numbers: `"3"` is not taken for 3."""

    model_config = ConfigDict(extra="allow", strict=True)
    refused: ClassVar[Fields] = REFUSED

    def refuse_unsupported(self) -> None:
        """Raise ApiError for a known field that cannot be honoured."""
        name = asked_for(self.model_extra or {}, self.refused)
        if name is not None:
            raise ApiError(400, f"{name} is not supported here: leave it out", name, "unsupported_parameter")


def asked_for(given: Mapping[str, object], fields: Fields) -> str | None:
    """The first of the given fields that is one of these, and asks for something."""
    for name, value in given.items():
        harmless = fields.get(name)
        if harmless is None or value is None:
            continue
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless):
            return name
    return None


class StreamOptions(Asked):
    """What a stream has besides its chunks."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Answered(Asked):
    """Any request that gets an answer."""

    refused: ClassVar[Fields] = {**REFUSED, **ELSEWHERE}


class Sampling(Answered):
    """How tokens are chosen, and when to stop: the fields of `SamplingParams` and OpenAI's."""

    model: Name | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    use_beam_search: bool = False
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    early_stopping: bool | Literal["never"] = False
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop: Stop | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    cache_salt: Salt | None = None
    return_token_ids: bool | None = None
    structured_outputs: dict[str, Any] | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True


class Message(Asked):
    """One message of a conversation; what else it has goes to the template as it is."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`. session: answer in a session of `/v1/sessions`, behind its messages."""

    messages: list[Message]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    session: Name | None = None


class ResponsesRequest(Answered):
    """`POST /v1/responses`, for text: without a store, every request brings its whole input."""

    model: Name | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    text: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    cache_salt: Salt | None = None


class TokenizeRequest(Asked):
    """`POST /tokenize`: a prompt, by default with special tokens, or messages, with those of the template."""

    model: Name | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Asked):
    """`POST /detokenize`."""

    model: Name | None = None
    tokens: list[Token]


class SessionRequest(Asked):
    """`POST /v1/sessions`: open a session, perhaps with something in it."""

    name: Name | None = None
    messages: list[Message] | None = None
    prompt: str | None = None
    cache_salt: Salt | None = None


class ForkRequest(Asked):
    """`POST /v1/sessions/{name}/fork`."""

    name: Name | None = None


class RollbackRequest(Asked):
    """`POST /v1/sessions/{name}/rollback`: drop so many tokens, or messages, from the end."""

    tokens: Annotated[int, Field(ge=0)] | None = None
    messages: Annotated[int, Field(ge=0)] | None = None
