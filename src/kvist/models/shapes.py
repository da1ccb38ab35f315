"""The shape of every role's weight, in the file and as the decoder wants it: widths padded with zeros to whole vectors.

Heads are padded one by one, so a head of 20 numbers lies in 32: the padded lanes are zeros in q, k and v alike and
change no score; the padded columns of o meet only zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.models.config import ModelConfig, padded
from kvist.models.families.table import Rows, Source

Shape = tuple[int, ...]
Array = npt.NDArray[Any]


def _short(role: str) -> str:
    """The role without its layer and its expert."""
    short = role.split(".", 2)[2] if role.startswith("layers.") else role
    return short.split(".", 2)[2] if short.startswith("expert.") else short


def expected_shape(config: ModelConfig, role: str, rows: Rows = "all") -> Shape:
    """(outputs, inputs) of a matrix or (outputs,) of a vector, true sizes.

    rows: "all" for the role's own, else of the matrix that it is a part of (q, k and v together, or gate and up).
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    name = _short(role)
    alone = config.query_key_norm == "heads"
    if rows != "all":
        outputs = 2 * inner if rows in ("gate", "up") else heads + 2 * kv_heads
        return (outputs,) if name.endswith(".bias") else (outputs, hidden)
    shapes: dict[str, Shape] = {
        "embed": (config.vocab_size, hidden), "head": (config.vocab_size, hidden),
        "positions": (config.max_positions, hidden),
        "final_norm": (hidden,), "attention_norm": (hidden,), "mlp_norm": (hidden,),
        "attention_post_norm": (hidden,), "mlp_post_norm": (hidden,),
        "q": (heads, hidden), "k": (kv_heads, hidden), "v": (kv_heads, hidden), "o": (hidden, heads),
        "q_norm": (config.head_dim if alone else heads,), "k_norm": (config.head_dim if alone else kv_heads,),
        "sinks": (config.num_heads,), "router": (config.experts, hidden),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }  # fmt: skip
    shape = shapes[name.removesuffix(".bias")]
    return shape[:1] if name.endswith(".bias") else shape


def in_place(config: ModelConfig, role: str, source: Source, array: Array) -> Array:
    """The tensor as the decoder wants it, C-contiguous; the array itself where nothing is to be done.

    Also one of block-quantised rows (bytes), if `only_rows_change` says so.
    """
    name, bias = _short(role).removesuffix(".bias"), role.endswith(".bias")
    if source.stacked:
        number = int(role.rpartition("expert.")[2].partition(".")[0])
        array = array.reshape(config.experts, -1, *array.shape[1:] if array.ndim == 2 and not bias else ())[number]
    if source.transposed and array.ndim == 2:
        array = array.T
    array = _own_rows(config, source, array)
    if name in ("q", "k", "v", "q_norm", "k_norm"):
        array = _heads_in_place(config, source, array)
    if source.offset:
        array = array + np.float32(source.offset)
    if not (array.ndim == 2 and only_rows_change(config, role, source)):
        array = _columns_in_place(config, name, array)
    if name == "sinks":
        return np.ascontiguousarray(array)
    if name not in ("embed", "positions", "head") or array.ndim == 1:
        array = _widen(array, 0, padded(array.shape[0]))
    return np.ascontiguousarray(array)


def _own_rows(config: ModelConfig, source: Source, array: Array) -> Array:
    """The part of a fused matrix or bias that is this role's."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if source.rows == "all":
        return array
    if source.alternating:
        return array[0::2] if source.rows == "gate" else array[1::2]
    if source.rows in ("gate", "up"):
        return array[: config.intermediate_size] if source.rows == "gate" else array[config.intermediate_size :]
    if source.by_head:
        parts = array.reshape(config.num_kv_heads, config.group + 2, config.head_dim, *array.shape[1:])
        mine = {
            "q": slice(config.group),
            "k": slice(config.group, config.group + 1),
            "v": slice(config.group + 1, None),
        }
        return parts[:, mine[source.rows]].reshape(-1, *array.shape[1:])
    start = {"q": 0, "k": heads, "v": heads + kv_heads}[source.rows]
    return array[start : start + (heads if source.rows == "q" else kv_heads)]


def only_rows_change(config: ModelConfig, role: str, source: Source) -> bool:
    """Whether a matrix keeps its columns on its way into the decoder."""
    columns = expected_shape(config, role)[1]
    padded_heads = _short(role) == "o" and config.stored_head_dim != config.head_dim
    return not source.transposed and columns == padded(columns) and not padded_heads


def _columns_in_place(config: ModelConfig, name: str, array: Array) -> Array:
    """Zeros between the heads that o reads, and after the last column."""
    if array.ndim == 1:
        return array
    if name == "o":
        heads = np.ascontiguousarray(array).reshape(array.shape[0], -1, config.head_dim)
        array = _widen(heads, -1, config.stored_head_dim).reshape(array.shape[0], -1)
    return _widen(array, 1, padded(array.shape[1]))


def _heads_in_place(config: ModelConfig, source: Source, array: Array) -> Array:
    """Rows of q, k or v, or what norms them: rotary pairs as halves, every head padded."""
    split = array.reshape(-1, config.head_dim, *array.shape[1:])
    if source.interleaved:
        order = np.concatenate(
            [
                np.arange(0, config.rotary_dim, 2),
                np.arange(1, config.rotary_dim, 2),
                np.arange(config.rotary_dim, config.head_dim),
            ]
        )
        split = split[:, order]
    split = _widen(split, 1, config.stored_head_dim)
    return split.reshape(-1, *array.shape[1:])


def _widen(array: Array, axis: int, size: int) -> Array:
    """The array with zeros appended along an axis up to `size`."""
    missing = size - array.shape[axis]
    if missing == 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)
