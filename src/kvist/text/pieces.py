"""The bytes a token stands for: how a token's text in the vocabulary becomes text for people.

Two ways are in use. Byte-level vocabularies write each byte as one printable character (GPT-2's table, below).
SentencePiece-like ones write a space as ``▁`` and a byte without a token of its own as ``<0x0A>``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from kvist.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_characters()


@dataclass(frozen=True)
class PieceRules:
    """How token texts become bytes: byte-level or not, replacements, byte tokens, spaces cut off the very beginning."""

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_tokens: bool = False
    leading_spaces: int = 0

    def to_bytes(self, piece: str) -> bytes:
        """The UTF-8 bytes of one token's text; a piece of a character where the token is one."""
        if self.byte_level:
            try:
                return bytes([BYTE_OF[character] for character in piece])
            except KeyError:  # an added token, written as it is
                return piece.encode("utf-8", "replace")
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        if self.byte_tokens and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.encode("utf-8", "replace")


def rules_from_decoder(decoder: Any) -> PieceRules:
    """The rules a `tokenizers` decoder follows (None: no decoder).

    Raises UnsupportedModelError for a decoder whose output for one token depends on its neighbours.
    """
    if decoder is None:
        raise UnsupportedModelError("the tokenizer has no decoder: kvist needs a byte-level or SentencePiece-like one")
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    byte_level, byte_tokens, leading = False, False, 0
    replacements: list[tuple[str, str]] = []
    for step in state["decoders"] if state["type"] == "Sequence" else [state]:
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_tokens = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                leading = start
            case {"type": "Metaspace", "replacement": str(mark), **rest}:
                replacements.append((mark, " "))
                leading = 0 if rest.get("prepend_scheme") == "never" else 1
            case _:
                raise UnsupportedModelError(
                    f"the tokenizer's decoder {step.get('type')} is not supported: "
                    "kvist reads ByteLevel, Metaspace and Replace + ByteFallback + Fuse + Strip"
                )
    return PieceRules(byte_level, tuple(replacements), byte_tokens, leading)
