"""A conversation as tokens: what is in the cache stays as it is when the template renders the next turn.

A chat template renders all messages anew at every turn, and encoding an answer's text does not always give back the
tokens that the model chose (``Stock`` + ``holm`` may be one token). So the tokens are kept, in pieces, and only what
the template adds behind them is encoded::

    pieces     <|im_start|>user.. |  Stock holm  |               the prompt's tokens | the answer's, as they were chosen
    rendered   <|im_start|>user..    Stockholm     <|im_end|>..  the next turn: the text of the pieces, then more
                                                   ▲ from here on it is encoded

Where the template shows something else (it leaves the thinking out of earlier answers, say), all from there on is
encoded again: the template decides. Spaces that it strips from the ends of an answer are not worth that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvist.errors import UsageError
from kvist.text.tokenizer import Tokenizer

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens with the text it stands for. `messages` counts those of the conversation up to its end."""

    ids: tuple[int, ...]
    text: str = ""
    messages: int = 0
    answer: bool = False

    def shown(self, rendered: str, at: int) -> int | None:
        """How many characters of `rendered` stand for it, from `at` on; None where something else stands there."""
        forms = [self.text]
        if self.answer:
            forms += [self.text.strip(), self.text.lstrip(), self.text.rstrip()]
        return next((len(form) for form in forms if rendered.startswith(form, at)), None)


@dataclass(frozen=True, slots=True)
class History:
    """Tokens in pieces, and the messages that they stand for (None: plain text). Never changed, so that it is shared
    freely: a mark, a fork and a rollback are references to one.
    """

    pieces: tuple[Piece, ...] = ()
    messages: tuple[Message, ...] | None = None
    length: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the tokens."""
        object.__setattr__(self, "length", sum(len(piece.ids) for piece in self.pieces))

    @property
    def token_ids(self) -> list[int]:
        """All tokens."""
        return [token for piece in self.pieces for token in piece.ids]

    def with_tokens(self, ids: Sequence[int]) -> History:
        """Plain text with more tokens."""
        return History((*self.pieces, Piece(tuple(ids))), self.messages) if ids else self

    def with_messages(self, tokenizer: Tokenizer, messages: Sequence[Message], rendered: str) -> History:
        """The conversation with more messages, of which the template makes `rendered`."""
        kept: list[Piece] = []
        at = 0
        for piece in self.pieces:
            shown = piece.shown(rendered, at)
            if shown is None:
                break
            kept.append(piece)
            at += shown
        every = (*(self.messages or ()), *messages)
        rest = rendered[at:]
        return History((*kept, Piece(tuple(encode_behind(tokenizer, rest)), rest, len(every))), every)

    def with_answer(self, ids: Sequence[int], text: str) -> History:
        """With tokens that the model chose. In a conversation they are a message, or go on with one that was cut."""
        if self.messages is None:
            return self.with_tokens(ids)
        last = self.pieces[-1]
        if not last.answer:
            said: Message = {"role": "assistant", "content": text}
            every = (*self.messages, said)
            return History((*self.pieces, Piece(tuple(ids), text, len(every), answer=True)), every)
        return self._with_last(Piece((*last.ids, *ids), last.text + text, last.messages, answer=True))

    def cut(self, tokenizer: Tokenizer, length: int) -> History:
        """The first `length` tokens. A conversation is cut inside answers and between pieces only (UsageError)."""
        kept: list[Piece] = []
        left = length
        for piece in self.pieces:
            if left < len(piece.ids):
                break
            kept.append(piece)
            left -= len(piece.ids)
        if not left:
            while kept and not kept[-1].ids:
                kept.pop()
        if self.messages is None:
            return History((*kept, Piece(self.pieces[len(kept)].ids[:left])) if left else tuple(kept))
        if not left:
            return History(tuple(kept), self.messages[: kept[-1].messages if kept else 0])
        piece = self.pieces[len(kept)]
        if not piece.answer:
            raise UsageError(
                f"{length} tokens end inside a message that was appended: roll back to {length - left} or "
                f"{length - left + len(piece.ids)} tokens, or into an answer"
            )
        ids = piece.ids[:left]
        text = tokenizer.decode(list(ids), continues=True)
        whole = History((*kept, piece), self.messages[: piece.messages])
        return whole._with_last(Piece(ids, text, piece.messages, answer=True))

    def _with_last(self, answer: Piece) -> History:
        """With another last answer."""
        assert self.messages is not None
        said: Message = {"role": "assistant", "content": answer.text}
        return History((*self.pieces[:-1], answer), (*self.messages[:-1], said))


def encode_behind(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that has other text before it.

    A SentencePiece-like tokenizer puts a space before what it takes for the beginning: a control token goes before.
    """
    if not tokenizer.leading_spaces or not tokenizer.eos_ids:
        return tokenizer.encode(text, add_special=False)
    ids = tokenizer.encode(tokenizer.eos_token + text, add_special=False)
    return ids[1:] if ids[:1] == [tokenizer.eos_ids[0]] else tokenizer.encode(text, add_special=False)


def said_tokens(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """The first of an answer's tokens, as many as its text needs where a stop string cut it.

    Where a token crosses the edge the text is encoded anew: no token may say what the text leaves out.
    """
    data, whole = text.encode("utf-8"), b""
    for count, token in enumerate([*ids, -1]):
        if whole == data:
            return list(ids[:count])
        if not tokenizer.is_special(token):
            whole += tokenizer.token_bytes(token)
    return encode_behind(tokenizer, text)
