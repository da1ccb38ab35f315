"""A jinja2 environment for templates from strangers: no way into Python, no endless loops, no exploding strings.

jinja2's immutable sandbox forbids reaching into Python. Added here, because templates come with models from anywhere:

- all ``for`` loops and calls of a rendering draw on one budget of rounds, and end when its time is over;
- no number over `MAX_NUMBER` reaches ``*``, ``**``, a call or a filter;
- no text or list over `MAX_LENGTH` comes out of an operator, a call or a filter.

This stops accidents and plain attacks; what a template can make of nested lists is not counted.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import CodeType
from typing import Any

from jinja2 import Template, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from kvist.errors import UsageError

MAX_LENGTH = 16 << 20  # characters of a text, items of a list
MAX_ROUNDS = 1_000_000  # loop rounds and calls in one rendering
MAX_NUMBER = 1_000_000
MAX_SECONDS = 2.0  # of one rendering

_WIDE = re.compile(r"\d{4}|%\S*\*")


class TemplateRefusedError(UsageError):
    """A template went over a limit, or refused the messages itself."""


class TemplateSlowError(TemplateRefusedError):
    """A rendering had used up its time."""


class _Limits(NodeTransformer):
    """Puts a counting filter around what is looped over, and a measuring one around joined strings."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2's name)
        """Count the loop's rounds."""
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_rounds", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Measure what ``~`` makes."""
        self.generic_visit(node)
        return nodes.Filter(node, "_short", [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one rendering, with the globals and filters that chat templates expect."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._seconds = MAX_SECONDS if seconds is None else seconds
        self._rounds_left, self._end = MAX_ROUNDS, time.monotonic() + self._seconds
        self.filters = {**_filters(), "_rounds": self._rounds, "_short": short}
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Limits().visit(super()._parse(source, name, filename))
        return template

    def _spend(self) -> None:
        self._rounds_left -= 1
        if self._rounds_left < 0:
            raise TemplateRefusedError(f"the chat template loops more than {MAX_ROUNDS:,} times: use another template")
        if not self._rounds_left & 63 and time.monotonic() > self._end:
            raise TemplateSlowError(f"the chat template runs for {self._seconds:g} seconds: use another template")

    def load(self, source: str) -> Template:
        """The template of a source text, which is compiled once."""
        return self.template_class.from_code(self, _compiled(source), self.make_globals(None))

    def _rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend()
            yield item

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something from a template, counted and measured."""
        self._spend()
        _check_numbers(args)
        _check_numbers(kwargs.values())
        return short(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply one of the operators that can make something large, measured before where it multiplies."""
        if operator == "**":
            _check_numbers((left, right))
            if isinstance(right, int) and right > 64:
                raise TemplateRefusedError("the chat template computes a power over 64: use another template")
        if operator == "*":
            for many, text in ((left, right), (right, left)):
                if isinstance(many, int) and hasattr(text, "__len__") and many * len(text) > MAX_LENGTH:
                    raise _too_long()
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise TemplateRefusedError("the chat template formats with a width over 999: use another template")
        return short(super().call_binop(context, operator, left, right))


@functools.cache
def _filters() -> dict[str, Callable[..., Any]]:
    """jinja2's filters, measured; made once, since an environment is made for each rendering."""
    return {name: _measured(function) for name, function in (FILTERS | {"tojson": to_json}).items()}


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> CodeType:
    """The code of a template. It takes filters and globals from the environment that runs it, with its own limits."""
    return ChatEnvironment().compile(source)


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
            raise TemplateRefusedError(f"the chat template uses a number over {MAX_NUMBER:,}: use another template")


def _too_long() -> TemplateRefusedError:
    return TemplateRefusedError(f"the chat template makes more than {MAX_LENGTH:,} characters: shorten the messages")


def short(value: Any) -> Any:
    """`value`, or TemplateRefusedError where it is a text or a list over `MAX_LENGTH`."""
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_LENGTH:
        raise _too_long()
    return value


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose numbers and result are checked."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args[1:])
        _check_numbers(kwargs.values())
        return short(function(*args, **kwargs))

    return checked


def raise_exception(message: object) -> None:
    """What a template calls where it cannot take the messages."""
    raise TemplateRefusedError(f"the chat template refuses the messages: {' '.join(str(message).split())[:300]}")


def strftime_now(pattern: str) -> str:
    """The present local time, for templates that tell the model the date."""
    return datetime.now().strftime(pattern)


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes (jinja2's own filter escapes ``<``), with the arguments that templates use."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
