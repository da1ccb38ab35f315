"""Log-probabilities in the shape of the older completions interface: four lists side by side, a place for a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvist.outputs import Logprobs
from kvist.text.tokenizer import Tokenizer


class LegacyLogprobs:
    """Of one text; `top` likeliest at each place. text_offset counts characters, those of the echoed prompt first."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer, self._top, self._offset = tokenizer, top, 0

    def whole(
        self, prompt: Sequence[Logprobs | None] | None, answer: Sequence[Logprobs], prompt_ids: Sequence[int]
    ) -> dict[str, Any]:
        """Of the prompt's tokens, where they are echoed, and the answer's."""
        made = self._empty()
        if prompt is not None:
            self._first(made, prompt_ids)
            for found in prompt[1:]:
                self._add(made, found)
        for found in answer:
            self._add(made, found)
        return made

    def part(self, found: Logprobs | None) -> dict[str, Any] | None:
        """Of one token of a stream."""
        if found is None:
            return None
        made = self._empty()
        self._add(made, found)
        return made

    def _empty(self) -> dict[str, Any]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def _first(self, made: dict[str, Any], prompt_ids: Sequence[int]) -> None:
        """The first token of a prompt, which nothing stands before."""
        self._place(made, self._tokenizer.decode([prompt_ids[0]], skip_special=False), None, None)

    def _add(self, made: dict[str, Any], found: Logprobs | None) -> None:
        assert found
        one = next(iter(found.values()))
        likeliest = sorted((other for other in found.values() if other.rank <= self._top), key=lambda other: other.rank)
        self._place(made, one.decoded_token, one.logprob, {other.decoded_token: other.logprob for other in likeliest})

    def _place(self, made: dict[str, Any], text: str, logprob: float | None, top: dict[str, float] | None) -> None:
        made["tokens"].append(text)
        made["token_logprobs"].append(logprob)
        made["top_logprobs"].append(top)
        made["text_offset"].append(self._offset)
        self._offset += len(text)
