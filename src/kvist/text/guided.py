"""Guided decoding: what a request's answer must look like -> a compiled grammar -> a guide for each answer.

::

    StructuredOutputs ── Guides.compile ──► Grammar ── guide() ──► Guide     one for each answer: tokens in, masks out
                         any thread, kept     frozen                         on the engine's thread

llguidance parses bytes: a token may follow where its bytes may. Special tokens have none, so no text that a model makes
can be taken for one; a Lark grammar names them: ``<|im_end|>`` or ``<[2]>``. When no more text may follow, only the end
tokens may.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from kvist.errors import RequestError, UsageError
from kvist.structured import StructuredOutputs
from kvist.text.grammars import MOST_TEXT, grammar_text
from kvist.text.history import encode_behind
from kvist.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 32  # compiled grammars
SECONDS = 5.0  # that compiling may take; usual ones take a millisecond
AT_ONCE = 2  # grammars that are compiled side by side, those that were given up included
AMBIGUOUS = 500, 10_000  # items of a row and of a step in a Lark grammar: a mask takes 20 ms at most, else seconds

T = TypeVar("T")


class TokenGuide:
    """A `kvist.engine.guide.Guide`: one answer's place in a grammar."""

    def __init__(self, matcher: LLMatcher, size: int, ends: frozenset[int]) -> None:
        self._matcher, self._size, self._ends = matcher, size, ends
        self.ended = False
        self.failure: str | None = None

    def mask(self) -> npt.NDArray[np.uint32]:
        """The tokens that may follow: ceil(vocabulary / 32) words, the lowest bit first."""
        found = np.empty(-(-self._size // 32), np.uint32)
        self._matcher.unsafe_compute_mask_ptr(found.ctypes.data, found.nbytes)
        if self._matcher.is_error() or not found.any():
            self._fail()
        return found

    def accept(self, token: int) -> bool:
        """Go on with a token; whether it may follow."""
        if self.ended or not self._matcher.consume_token(token):
            self._fail()
            return False
        self.ended = token in self._ends
        return True

    def fork(self) -> TokenGuide:
        """Another one that has accepted the same tokens."""
        other = TokenGuide(self._matcher.deep_copy(), self._size, self._ends)
        other.ended, other.failure = self.ended, self.failure
        return other

    def _fail(self) -> None:
        cause = _line(self._matcher.get_error())
        self.failure = f"the grammar goes too far here ({cause}): give a simpler one"
        if not cause or cause.startswith("NoExtension"):
            self.failure = "no token of this model can go on as the grammar wants: give another one"


class Grammar:
    """A compiled grammar. Any thread may take guides from it."""

    def __init__(self, matcher: LLMatcher, size: int, ends: frozenset[int]) -> None:
        self._start = TokenGuide(matcher, size, ends)

    def guide(self) -> TokenGuide:
        """One for a new answer, or for the answers of one request."""
        return self._start.fork()


class Guides:
    """Compiles grammars for one vocabulary, and keeps the last few. Any thread may call it.

    size: logits of the model in a row, which may be more than the tokenizer has tokens. most: bytes of a grammar.
    seconds: that one may take to compile.
    """

    def __init__(
        self, tokenizer: Tokenizer, size: int, *, most: int = MOST_TEXT, seconds: float = SECONDS, kept: int = KEPT
    ) -> None:
        self._tokenizer, self._size, self._most, self._seconds, self._kept = tokenizer, size, most, seconds, kept
        self._ends = tuple(token for token in tokenizer.eos_ids if token < size)
        self._grammars: OrderedDict[StructuredOutputs, Grammar] = OrderedDict()
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(AT_ONCE)

    def compile(self, wanted: StructuredOutputs) -> Grammar:
        """The grammar of what is wanted.

        RequestError, which says what is wrong, where it is no grammar, none that this model can follow, too large, or
        takes too long.
        """
        with self._lock:
            if wanted in self._grammars:
                self._grammars.move_to_end(wanted)
                return self._grammars[wanted]
        text = grammar_text(wanted, self._most)
        vocabulary = self._vocabulary_of_bytes()
        matcher = self._within(lambda: self._match(vocabulary, text, wanted.kind))
        made = Grammar(matcher, self._size, frozenset(self._ends))
        with self._lock:
            self._grammars[wanted] = made
            while len(self._grammars) > self._kept:
                self._grammars.popitem(last=False)
        return made

    def guide(self, wanted: StructuredOutputs | None) -> TokenGuide | None:
        """A guide to what is wanted, if anything is."""
        return None if wanted is None else self.compile(wanted).guide()

    def _match(self, vocabulary: LLTokenizer, text: str, kind: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        row, items = AMBIGUOUS if kind == "grammar" else (None, None)
        limits = LLParserLimits(verbose_errors=False, max_items_in_row=row, step_max_items=items)
        matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(f"the {kind} cannot be followed: {_line(matcher.get_error())}")
        first = TokenGuide(matcher.deep_copy(), self._size, frozenset())
        first.mask()
        if first.failure is not None:
            raise RequestError(f"the {kind} cannot be followed: {first.failure}")
        return matcher

    def _within(self, work: Callable[[], T]) -> T:
        """Do it, or give up waiting after `seconds`. Nothing can stop llguidance, so not many may go on unwanted."""
        slow = f"the grammar takes more than {self._seconds:g} seconds to compile: give a simpler one"
        if not self._slots.acquire(timeout=self._seconds):
            raise RequestError("other grammars are being compiled and take long: try again later")
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._slots.release()

        threading.Thread(target=run, name="kvist-grammar", daemon=True).start()
        try:
            return future.result(self._seconds)
        except TimeoutError as error:
            raise RequestError(slow) from error

    def _vocabulary_of_bytes(self) -> LLTokenizer:
        """llguidance's tokenizer, made once: 0.2 s for 50,000 tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._ends:
            raise UsageError("this model has no end token, so no answer could end: leave structured_outputs out")
        with self._lock:
            if self._vocabulary is None:
                wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, self._size, self._ends[0]))
                slices = LLTokenizer.json_slices()
                self._vocabulary = LLTokenizer(wrapper, self._size, list(self._ends), slices)
            return self._vocabulary


class _Vocabulary:
    """What llguidance wants to know of a tokenizer; the names are its own."""

    def __init__(self, tokenizer: Tokenizer, size: int, end: int) -> None:
        self._tokenizer, self._ids = tokenizer, dict[bytes, int]()
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        self._special = frozenset(tokenizer.special_tokens.values())
        self.special_token_ids = sorted(token for token in tokenizer.special_tokens.values() if token < size)
        for token in range(size - 1, -1, -1):
            if not tokenizer.is_special(token):
                self._ids[self.tokens[token]] = token
        self._ids.pop(b"", None)
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are the text's, none of them special. It ends before a byte that no token has."""
        if isinstance(text, bytes):
            raise TypeError("text, not bytes")  # which tells llguidance to give text
        ids, data = encode_behind(self._tokenizer, text), text.encode()
        if b"".join(self.tokens[token] for token in ids) == data and not self._special.intersection(ids):
            return ids
        ids, start = [], 0
        while start < len(data):
            sizes = range(min(self._longest, len(data) - start), 0, -1)
            size = next((size for size in sizes if data[start : start + size] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[data[start : start + size]])
            start += size
        return ids


def _line(message: str) -> str:
    """A message of several lines as one, without what a person cannot use."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:300]
