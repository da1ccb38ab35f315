"""Text to token ids and back, for one vocabulary. The engine does not tokenize; the library, CLI and server do."""

from __future__ import annotations

import tokenizers

from kvist.errors import UsageError
from kvist.text.pieces import rules_from_decoder


class Tokenizer:
    """A vocabulary with its splitting rules, special tokens and chat template.

    Made by `tokenizer_from_folder` or `tokenizer_from_gguf`. `eos_ids` end a generation, the main one first.
    Decoding joins the tokens' bytes and reads them as UTF-8; broken sequences become U+FFFD.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_ids: tuple[int, ...] = (),
        chat_template: str | None = None,
    ) -> None:
        inner.no_truncation()  # a tokenizer.json may carry its training's settings
        inner.no_padding()
        self._inner = inner
        self._rules = rules_from_decoder(inner.decoder)
        added = inner.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {token.content: i for i, token in sorted(added.items()) if token.special}
        self._special_ids = frozenset(self.special_tokens.values())
        self._bytes: dict[int, bytes] = {}
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.chat_template = chat_template

    @property
    def bos_token(self) -> str:
        """The text of the beginning-of-sequence token, "" where there is none."""
        return "" if self.bos_id is None else self.token_text(self.bos_id)

    @property
    def eos_token(self) -> str:
        """The text of the main end-of-sequence token, "" where there is none."""
        return self.token_text(self.eos_ids[0]) if self.eos_ids else ""

    @property
    def leading_spaces(self) -> int:
        """Spaces that encoding puts before a text and decoding takes off again: 1 for SentencePiece-like, else 0."""
        return self._rules.leading_spaces

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The token ids of `text`. Special tokens written out in it become their ids.

        `add_special` adds what the model expects around a text (often a beginning token); leave it out for a rendered
        chat, which writes its own. Raises UsageError where `text` is not a string of valid Unicode.
        """
        try:
            ids: list[int] = self._inner.encode(text, add_special_tokens=add_special).ids
        except TypeError as error:
            raise UsageError("the text is not valid Unicode (a lone surrogate?): pass a proper string") from error
        return ids

    def decode(self, ids: list[int], skip_special: bool = True, *, continues: bool = False) -> str:
        """The text of `ids`; unknown ids are nothing.

        `continues` says that other text comes before: a SentencePiece-like leading space is then kept.
        """
        data = b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self._special_ids))
        text = data.decode("utf-8", "replace")
        return text if continues else strip_leading(text, self.leading_spaces)

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it (``Ġthe``, ``▁the``, ``<|im_end|>``); "" for an unknown id."""
        return (self._inner.id_to_token(token_id) or "") if token_id >= 0 else ""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for, special or not; b"" for an unknown id."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._rules.to_bytes(self.token_text(token_id))
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, which `decode` leaves out by default."""
        return token_id in self._special_ids


def strip_leading(text: str, spaces: int) -> str:
    """`text` without its first spaces, at most `spaces` of them."""
    for _ in range(spaces):
        text = text.removeprefix(" ")
    return text
