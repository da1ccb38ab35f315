"""Turn a request's tokens into text: chunks while it runs, and in the end its output, folded from the same chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kvist.engine.beams import BeamSearch
from kvist.engine.params import RequestMetrics, SamplingParams, TokenLogprob, TokenOutput
from kvist.engine.sequence import Watch
from kvist.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    Logprob,
    Logprobs,
    RequestOutput,
    TextChunk,
)
from kvist.text.detokenizer import Detokenizer
from kvist.text.stops import AnswerText
from kvist.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Branch:
    """One answer as far as it is."""

    text: AnswerText
    pieces: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    output: CompletionOutput | None = None


class Fold:
    """One request: `watching` is for the engine, `add` takes what the engine gives; `output` once all has ended."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt: str | None, ids: Sequence[int]) -> None:
        self.output: RequestOutput | None = None
        self._tokenizer, self._params, self._prompt, self._ids = tokenizer, params, prompt, ids
        self._branches = [_Branch(self._text()) for _ in range(params.branches)]
        self._prompt_logprobs: tuple[Logprobs | None, ...] | None = None

    def watching(self, index: int) -> Watch:
        """Who watches the text of a branch."""
        return self._branches[index].text.watch

    def add(self, token: TokenOutput) -> TextChunk:
        """Take one token; the text that became certain. The token that ends an answer has no text."""
        branch = self._branches[token.index]
        stopped = token.finish_reason == "stop" and isinstance(token.stop_reason, str)
        _tell_difference(self._tokenizer, token.metrics)
        text = ""
        if token.token_id is not None:
            branch.tokens.append(token.token_id)
            # the engine has shown the token to the text's watch, unless it is a stop token
            if token.finish_reason != "stop" or stopped:
                text = branch.text.take()
            elif self._params.include_stop_str_in_output:
                branch.text.watch(token.token_id)
                text = branch.text.take()
        if token.finish_reason is not None and not stopped:
            text += branch.text.end()
        logprobs = None if token.logprobs is None else _named(self._tokenizer, token.logprobs)
        if logprobs is not None:
            branch.logprobs.append(logprobs)
        if token.prompt_logprobs is not None:
            self._prompt_logprobs = (None, *(_named(self._tokenizer, found) for found in token.prompt_logprobs))
        branch.pieces.append(text)
        if token.finish_reason is not None:
            self._end(branch, token)
        return TextChunk(
            token.request_id, text, token.token_id, token.finish_reason, token.metrics, token.index,
            token.stop_reason, logprobs,
        )  # fmt: skip

    def _end(self, branch: _Branch, token: TokenOutput) -> None:
        branch.output = CompletionOutput(
            token.index, "".join(branch.pieces), tuple(branch.tokens), token.finish_reason, token.stop_reason,
            token.cumulative_logprob, None if self._params.logprobs is None else tuple(branch.logprobs),
        )  # fmt: skip
        outputs = [branch.output for branch in self._branches if branch.output is not None]
        if len(outputs) < len(self._branches):
            return
        if self._params.branches > self._params.n:
            outputs.sort(key=lambda output: -(output.cumulative_logprob or 0.0))  # stable: of equals the lower index
            outputs = [replace(output, index=place) for place, output in enumerate(outputs[: self._params.n])]
            if self._params.logprobs is None:
                outputs = [replace(output, cumulative_logprob=None) for output in outputs]
        self.output = RequestOutput(
            token.request_id, self._prompt, self._ids, tuple(outputs), token.metrics,
            prompt_logprobs=self._prompt_logprobs,
        )  # fmt: skip

    def _text(self) -> AnswerText:
        params = self._params
        detokenizer = Detokenizer(self._tokenizer, skip_special=params.skip_special_tokens, continues=True)
        return AnswerText(detokenizer, params.stops, include=params.include_stop_str_in_output, least=params.min_tokens)


def beams(tokenizer: Tokenizer, prompt: Sequence[int], search: BeamSearch) -> BeamSearchOutput:
    """What a beam search that is over returns."""
    found = []
    for answer in search.finished:
        tokens = (*prompt, *answer.token_ids)
        text, own = tokenizer.decode(list(tokens)), tokenizer.decode(list(answer.token_ids), continues=True)
        found.append(
            BeamSearchSequence(tokens, answer.cumulative_logprob, answer.score, text, own, answer.finish_reason)
        )
    _tell_difference(tokenizer, search.metrics)
    return BeamSearchOutput(tuple(found), search.metrics)


def _tell_difference(tokenizer: Tokenizer, metrics: RequestMetrics) -> None:
    """Give the tokens of a report's first difference their texts."""
    found = None if metrics.reuse is None else metrics.reuse.first_difference
    if metrics.reuse is None or found is None or found.cached_text is not None:
        return
    cached, asked = (
        tokenizer.decode([token], skip_special=False, continues=True)
        for token in (found.cached_token, found.asked_token)
    )
    metrics.reuse = replace(metrics.reuse, first_difference=replace(found, cached_text=cached, asked_text=asked))


def _named(tokenizer: Tokenizer, found: Iterable[TokenLogprob]) -> Logprobs:
    """Log-probabilities by token id, each with its text; the first stays first."""
    named: dict[int, Logprob] = {}
    for one in found:
        if one.token_id not in named:
            text = tokenizer.decode([one.token_id], skip_special=False, continues=True)
            named[one.token_id] = Logprob(one.logprob, one.rank, text)
    return named
