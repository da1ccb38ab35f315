"""Which requests an engine takes: those that can run to their end, alone in the pool if need be."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from kvist.cache.manager import CacheManager
from kvist.engine.checks import whole
from kvist.engine.params import SamplingParams
from kvist.errors import RequestError

MOST_PRIORITY = 1000  # either way


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes: token ids below vocab_size, sequences up to max_model_len tokens.

    Up to max_num_seqs of them run together.
    """

    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    eos_ids: frozenset[int]
    seed: int = 0
    enable_cache: bool = True
    check_integrity: bool = False


def total_length(prompt: Tokens[int], max_tokens: int | None, limits: EngineLimits, manager: CacheManager) -> int:
    """Tokens after which a request ends, prompt included; RequestError for one that can never fit."""
    longest, count = limits.max_model_len, len(prompt)
    if count == 0:
        raise RequestError("the prompt is empty: give at least one token")
    _check_tokens(prompt, "token id", limits)
    if count >= longest:
        raise RequestError(
            f"the prompt is {count} tokens long and max_model_len is {longest}, which leaves no room "
            "for an answer: shorten the prompt"
        )
    if max_tokens is None:
        return longest
    total = count + max_tokens
    if total > longest:
        pages, layout = manager.groups[0].num_pages, manager.layout
        raise RequestError(
            f"{count} prompt tokens + {max_tokens} max_tokens = {total} can never fit: "
            f"max_model_len is {longest} (the pool holds {pages} pages of {layout.page_size} = "
            f"{pages * layout.page_size} tokens); ask for at most {longest - count} tokens"
        )
    return total


def check_priority(priority: int) -> None:
    """Refuse a priority that is no whole number, or so far out that it would be waited for without end."""
    whole("priority", priority, -MOST_PRIORITY, MOST_PRIORITY)


def check_pins(prompt: Tokens[int], salt: bytes, total: int, longest: int, manager: CacheManager) -> None:
    """Refuse a request of `total` tokens that does not fit beside what is pinned: it could never run to its end.

    longest: tokens of the longest request that is under way, where this one's prompt is going to be pinned: both must
    fit beside all pins then (0: it is not pinned).
    """
    if not len(manager.pins) and not longest:
        return
    keys = manager.keys(prompt, salt=salt)
    for number, (group, kept) in enumerate(zip(manager.groups, manager.pins.kept(keys), strict=True)):
        pages, need, most = group.num_pages, group.held(total), group.held(longest)
        # what a window has passed by is not its own any more, so a pinned page of its prompt may stand beside it
        beside = manager.pins.beside(number, keys if group.window is None else ())
        if need + beside > pages:
            raise RequestError(
                f"{total} tokens take {need} pages, and {beside} of {pages} pages are pinned: "
                "ask for fewer tokens or unpin"
            )
        if longest and most + beside + len(kept) > pages:
            raise RequestError(
                f"pinning {len(kept)} pages beside {beside} would leave {pages - beside - len(kept)} of {pages}, and a "
                f"request that runs may need {most}: pin later, or give max_tokens"
            )


def check_vocabulary(params: SamplingParams, ends: frozenset[int], limits: EngineLimits) -> None:
    """Refuse parameters that name tokens this model does not have, or leave none to choose."""
    _check_tokens(tuple(params.logit_bias or ()), "logit_bias: token id", limits)
    _check_tokens(tuple(params.stop_token_ids), "stop_token_ids: token id", limits)
    if params.min_tokens and len(ends) >= limits.vocab_size:
        raise RequestError("min_tokens holds all stop tokens back, and every token is one: give fewer stop_token_ids")


def _check_tokens(tokens: Tokens[int], what: str, limits: EngineLimits) -> None:
    bad = next((token for token in tokens if not 0 <= token < limits.vocab_size), None)
    if bad is not None:
        raise RequestError(f"{what} {bad} is not in this model's vocabulary of {limits.vocab_size}")
