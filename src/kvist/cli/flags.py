"""Flags that several verbs share, and what becomes of them: the options of an engine.

A verb names the flags it takes, each with the default None (the engine decides), and passes them on::

    def bench(model: Model, threads: Threads = None, page_size: PageSize = None) -> None:
        options = engine_options(threads=threads, page_size=page_size)
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Annotated, Any

import typer

from kvist.errors import UsageError

ENGINE = "Engine"
SAMPLING = "Sampling"

Model = Annotated[
    str, typer.Argument(help="An alias (smollm2), a folder, a file, or a pulled ORG/NAME.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _engine(flag: str, help_: str, panel: str = ENGINE) -> Any:
    return typer.Option(flag, help=help_, rich_help_panel=panel)


MaxModelLen = Annotated[
    int | None, _engine("--max-model-len", "Longest sequence in tokens, prompt and answer together.")
]
KvCacheDtype = Annotated[
    str | None,
    _engine(
        "--kv-cache-dtype",
        "Codec of pages: auto, f32, f16, bf16; lossy: int8, fp8, int6 to int3, lm4, lm3, kivi4, kivi2; k=int5,v=int3 "
        "for K and V apart; @FILE as `kvist eval --choose` writes it.",
    ),
]
KvCacheSkipLayers = Annotated[
    str | None,
    _engine("--kv-cache-skip-layers", "Layers whose pages stay floats under a lossy codec: 0,1,-2,-1 (-1: the last)."),
]
PageSize = Annotated[int | None, _engine("--page-size", "Slots of a page: 16, 32, 64 or 128.")]
KvCacheMemory = Annotated[str | None, _engine("--kv-cache-memory-bytes", "Size of the pool: 4GiB, 512MiB, or bytes.")]
MaxNumSeqs = Annotated[int | None, _engine("--max-num-seqs", "Sequences that run at once.")]
Policy = Annotated[
    str | None,
    _engine(
        "--policy",
        "Which positions a token sees: full; window:1024+4, the newest 1,024 and the first 4; topk:0.25, the quarter "
        "of the pages that matters most to it; evict:0.5, half of a prompt's.",
    ),
]
MaxBatchedTokens = Annotated[int | None, _engine("--max-num-batched-tokens", "Tokens a step computes at most.")]
PrefixCaching = Annotated[
    bool | None, _engine("--enable-prefix-caching/--no-enable-prefix-caching", "Keep pages and share them.", "Reuse")
]
CacheSalt = Annotated[str | None, _engine("--cache-salt", "Find only what was computed under the same salt.", "Reuse")]
MaxPinnedShare = Annotated[
    float | None, _engine("--max-pinned-share", "Part of the pages that may be pinned, 0 to 1.", "Reuse")
]
Weights = Annotated[str | None, _engine("--weights", "Type of the weights: auto, packed, f32, f16, bf16 or int8.")]
Speculative = Annotated[
    str | None,
    _engine(
        "--speculative-config",
        "Draft tokens and check them together; the text stays the same: ngram, or JSON such as "
        '{"method": "draft_model", "model": "NAME", "num_speculative_tokens": 4}.',
        "Speculation",
    ),
]
Threads = Annotated[int | None, _engine("--threads", "Kernel threads; all usable cores by default.")]
Seed = Annotated[int | None, _engine("--seed", "The same seed gives the same text.", SAMPLING)]


def engine_options(
    *,
    max_model_len: int | None = None,
    kv_cache_dtype: str | None = None,
    kv_cache_skip_layers: str | None = None,
    policy: str | None = None,
    page_size: int | None = None,
    kv_cache_memory_bytes: str | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    enable_prefix_caching: bool | None = None,
    max_pinned_share: float | None = None,
    enable_cache: bool | None = None,
    weights: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    speculative_config: str | None = None,
) -> dict[str, Any]:
    """The flags that were given, as options for `LLM` or `EngineConfig.from_options`."""
    given = {
        "max_model_len": max_model_len,
        "kv_cache_dtype": kv_cache_dtype,
        "kv_cache_skip_layers": None if kv_cache_skip_layers is None else layer_numbers(kv_cache_skip_layers),
        "policy": policy,
        "page_size": page_size,
        "kv_cache_memory_bytes": None
        if kv_cache_memory_bytes is None
        else memory_bytes(kv_cache_memory_bytes, "kv_cache_memory_bytes"),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "enable_prefix_caching": enable_prefix_caching,
        "max_pinned_share": max_pinned_share,
        "enable_cache": enable_cache,
        "weights": weights,
        "seed": seed,
        "threads": threads,
        "speculative_config": None if speculative_config is None else speculative_options(speculative_config),
    }
    return {name: value for name, value in given.items() if value is not None}


_UNITS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


def memory_bytes(text: str, name: str) -> int:
    """Bytes of a size as people write it: 4GiB, 512 MiB, 1.5GB, 1048576. Raises UsageError for anything else.

    name: what the error calls it.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(text) > 32:
        raise UsageError(f"{name} {text[:32]!r} is no size: give bytes, 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match[2] else int(float(match[1]))


def speculative_options(text: str) -> dict[str, Any]:
    """The fields of a speculative config: a JSON object, or the name of a method that needs no other field."""
    if not text.lstrip().startswith("{"):
        return {"method": text}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"speculative_config is not valid JSON ({error}): give the name of a method, or a JSON object"
        ) from error
    assert isinstance(found, dict)
    return found


def whole_numbers(text: str, name: str) -> list[int]:
    """Whole numbers from 1 on, separated by commas. Raises UsageError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and 0 < len(part) < 10 and int(part) > 0 for part in parts):
        raise UsageError(f"{name} {text[:40]!r}: give whole numbers from 1, separated by commas")
    return [int(part) for part in parts]


def layer_numbers(text: str) -> tuple[int, ...]:
    """Numbers of layers, separated by commas, below 0 from the last one on. Raises UsageError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d{1,4}", part, re.ASCII) for part in parts):
        raise UsageError(f"kv_cache_skip_layers {text[:40]!r}: give numbers of layers, as in 0,1,-2,-1")
    return tuple(map(int, parts))


_SPELLED = re.compile(
    r"(?<![\w/.\"-])(max_model_len|kv_cache_dtype|kv_cache_skip_layers|page_size|kv_cache_memory_bytes|max_num_seqs|"
    r"max_num_batched_tokens|max_body_bytes|enable_prefix_caching|max_pinned_share|cache_salt|speculative_config|max_tokens|min_tokens|"
    r"top_k|top_p|min_p|typical_p|repetition_penalty|presence_penalty|frequency_penalty|ignore_eos)(?![\w/.])"
)


def as_flags(message: str) -> str:
    """A message of the library with its options spelled as flags: `max_model_len` becomes `--max-model-len`.

    What is in double quotes stays as it is.
    """
    return _SPELLED.sub(lambda match: "--" + match[1].replace("_", "-"), message)


def as_fields(message: str, fields: Container[str]) -> str:
    """A message of the library about a JSON object that has these fields: options among them are in double quotes."""
    return _SPELLED.sub(lambda match: f'"{match[1]}"' if match[1] in fields else match[1], message)
