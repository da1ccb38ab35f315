"""Token ids to text while they are generated: what is final is handed out at once, nothing is ever taken back."""

from __future__ import annotations

import codecs

from kvist.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of token ids into pieces of text; their concatenation equals `Tokenizer.decode` of all ids.

    Holds back the bytes of a character that is not complete (at most 3). Constant work for each token.
    `skip_special` and `continues` as in `Tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = 0 if continues else tokenizer.leading_spaces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text that has become final with this token, often but not always its own; may be ""."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._without_leading(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """The rest: U+FFFD for a character that was never completed, else ""."""
        return self._without_leading(self._decoder.decode(b"", True))

    def _without_leading(self, text: str) -> str:
        """Take off the leading spaces that are still to go; the first other character ends that."""
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text
