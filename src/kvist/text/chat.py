"""Messages to the one text a chat model was trained on, by the template that came with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvist.errors import UnsupportedModelError, UsageError
from kvist.text.messages import Message, for_template
from kvist.text.tools import takes_tools

MAX_TEMPLATE = 1 << 20  # characters of a template
MAX_RENDERED = 16 << 20  # characters of a rendered chat

_RUNTIME_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def render(
    template: str | None,
    messages: Sequence[Message],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, object]] | None = None,
    seconds: float | None = None,
) -> str:
    """The prompt for `messages` (each with "role" and "content"; see `messages`), special tokens written out in it.

    Encode it with ``add_special=False``. The template runs in a sandbox with limits on loops, lengths and time:
    `seconds` (None: what any template may take), after which it is a TemplateSlowError.
    Raises UnsupportedModelError where the model has no template, UsageError where the template is broken, goes over a
    limit or refuses the messages.
    """
    if template is None:
        raise UnsupportedModelError(
            "the model has no chat template (a base model?): give it a plain prompt, or use an instruct model"
        )
    if len(template) > MAX_TEMPLATE:
        raise UsageError(f"the chat template has {len(template):,} characters, over {MAX_TEMPLATE:,}: use another one")
    plain = for_template(messages)
    if tools and not takes_tools(template):
        raise UsageError("this model's chat template takes no tools: leave them out, or use a model that calls them")
    from jinja2 import TemplateError  # 50 ms that only chats need

    from kvist.text.sandbox import ChatEnvironment

    try:
        compiled = ChatEnvironment(seconds).load(template)
        stream = compiled.generate(
            messages=plain,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            tools=None if tools is None else list(tools),
        )
        parts, length = [], 0
        for part in stream:
            parts.append(part)
            length += len(part)
            if length > MAX_RENDERED:
                raise UsageError(f"the chat is longer than {MAX_RENDERED:,} characters: shorten the messages")
    except UsageError:
        raise
    except (TemplateError, *_RUNTIME_ERRORS) as error:
        raise UsageError(_cause(error)) from error
    return "".join(parts)


def _cause(error: Exception) -> str:
    """One line for a template that failed."""
    cause = " ".join(str(error).split())[:300]
    line = getattr(error, "lineno", None)  # only a syntax error has one
    if line is not None:
        return f"the chat template is broken (line {line}: {cause}): use another one"
    return f"the chat template fails on these messages ({cause}): check roles and contents, or use another template"
