"""Which requests an engine takes: those that can run to their end, alone in the pool if need be."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from kvist.cache.manager import CacheManager
from kvist.engine.checks import whole
from kvist.engine.eviction import Evictor
from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.errors import RequestError

MOST_PRIORITY = 1000  # either way: further out one would wait for it without end


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
    policy: str = "full"  # this and the two below are named in what requests report
    kv_cache_dtype: str = "auto"
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """When a request that was taken ends: after `limit` tokens, prompt included, or one of `ends`."""

    limit: int
    ends: frozenset[int]


def admit(
    prompt: Tokens[int],
    params: SamplingParams | BeamSearchParams,
    limits: EngineLimits,
    manager: CacheManager,
    *,
    salt: bytes = b"",
    priority: int = 0,
    longest: int = 0,
    evictor: Evictor | None = None,
) -> Admission:
    """Take a request that can run to its end; RequestError for any other, with the arithmetic.

    longest: tokens of the longest request that is under way, where this one's prompt is going to be pinned: both must
    fit beside all pins then (0: it is not pinned).
    """
    limit = _total_length(prompt, params.max_tokens, limits, manager)
    if evictor is not None and evictor.kept(prompt) is not None:
        _check_room_to_evict(prompt, salt, evictor, manager)
    ends = frozenset() if params.ignore_eos else limits.eos_ids
    if isinstance(params, SamplingParams):
        ends |= frozenset(params.stop_token_ids)
        _check_vocabulary(params, ends, limits)
    whole("priority", priority, -MOST_PRIORITY, MOST_PRIORITY)
    _check_pins(prompt, salt, limit, longest, manager, 0 if evictor is None else evictor.pages(longest))
    return Admission(limit, ends)


def _total_length(prompt: Tokens[int], max_tokens: int | None, limits: EngineLimits, manager: CacheManager) -> int:
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


def _check_room_to_evict(prompt: Tokens[int], salt: bytes, evictor: Evictor, manager: CacheManager) -> None:
    """Refuse a prompt whose pages, those of what is kept of it, and what it takes to choose do not fit."""
    need, have = evictor.pages(len(prompt) - 1), manager.groups[0].num_pages
    pinned = manager.pins.beside(0, manager.keys(prompt, salt=salt))
    if need > have - pinned:
        raise RequestError(
            f"{len(prompt)} prompt tokens take {need} pages until entries are evicted by {evictor.rule.name}, and the "
            f"pool has {have}, of which {pinned} are pinned: shorten the prompt, or raise kv_cache_memory_bytes"
        )


def _check_pins(
    prompt: Tokens[int], salt: bytes, total: int, longest: int, manager: CacheManager, most_to_evict: int
) -> None:
    """Refuse a request of `total` tokens that does not fit beside what is pinned, or whose pin lets another not fit.

    most_to_evict: pages that the longest request may take until entries of its prompt are evicted.
    """
    if not len(manager.pins) and not longest:
        return
    keys = manager.keys(prompt, salt=salt)
    for number, (group, kept) in enumerate(zip(manager.groups, manager.pins.kept(keys), strict=True)):
        pages, need, most = group.num_pages, group.held(total), max(group.held(longest), most_to_evict)
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


def _check_vocabulary(params: SamplingParams, ends: frozenset[int], limits: EngineLimits) -> None:
    """Refuse parameters that name tokens this model does not have, or leave none to choose."""
    _check_tokens(tuple(params.logit_bias or ()), "logit_bias: token id", limits)
    _check_tokens(tuple(params.stop_token_ids), "stop_token_ids: token id", limits)
    if params.min_tokens and len(ends) >= limits.vocab_size:
        raise RequestError("min_tokens holds all stop tokens back, and every token is one: give fewer stop_token_ids")


def _check_tokens(tokens: Tokens[int], what: str, limits: EngineLimits) -> None:
    bad = next((token for token in tokens if not 0 <= token < limits.vocab_size), None)
    if bad is not None:
        raise RequestError(f"{what} {bad} is not in this model's vocabulary of {limits.vocab_size}")
