"""What some families' attention adds, windows, soft caps and sinks: close to the reference, and the same bits however a
row is reached.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention import Shape, World, build, rotary
from kvist.errors import UsageError
from kvist.kernels.cpu import backend as cpu
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend, Rotary
from kvist.kernels.reference import ReferenceBackend
from ops import numbers, same_bits

CASES: list[tuple[Shape, int, str, int, dict[str, Any]]] = [
    (Shape(16, 2, 1), 150, "f32", 16, {"window": 1}),
    (Shape(16, 1, 9), 150, "f16", 32, {"window": 5}),
    (Shape(16, 2, 2), 300, "bf16", 64, {"window": 63}),
    (Shape(32, 1, 4), 300, "f16", 16, {"window": 64}),
    (Shape(64, 2, 3), 700, "f32", 128, {"window": 65}),
    (Shape(64, 1, 3), 1300, "f16", 16, {"window": 512}),
    (Shape(16, 1, 2), 1300, "f16", 16, {"window": 700, "sinks": True}),
    (Shape(128, 1, 64), 200, "f32", 16, {"window": 100}),  # a group larger than a tile of rows
    (Shape(64, 2, 2), 600, "f16", 16, {"softcap": 3.0}),
    (Shape(32, 2, 4), 1100, "f32", 32, {"sinks": True}),
    (Shape(32, 2, 2), 600, "f16", 16, {"window": 37, "softcap": 5.0, "sinks": True}),
    (Shape(64, 2, 3), 700, "f16", 16, {"window": 100, "first": 4}),
    (Shape(32, 1, 2), 1300, "f32", 64, {"window": 513, "first": 70}),
    (Shape(48, 2, 1), 300, "bf16", 16, {"window": 20, "first": 20, "softcap": 4.0}),
]
IDS = [f"{s.dims}x{s.kv_heads}x{s.group}-{n}-{kv}-{'-'.join(map(str, extra))}" for s, n, kv, _, extra in CASES]


def make(backend: Backend, case: int, **changes: Any) -> World:
    shape, length, kv, page_size, extra = CASES[case]
    sinks = numbers(5, shape.kv_heads * shape.group, scale=2.0) if "sinks" in extra else None
    return build(backend, shape, length, **{"kv": kv, "page_size": page_size, **extra, "sinks": sinks, **changes})


@pytest.fixture(scope="module")
def wholes(backend: CpuBackend) -> list[np.ndarray]:
    return [make(backend, case).whole() for case in range(len(CASES))]


@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_close_to_the_reference(backend: CpuBackend, wholes: list[np.ndarray], case: int) -> None:
    world, truth = make(backend, case), make(ReferenceBackend(), case)
    world.whole()
    truth.pool.data[:] = world.pool.data
    length, window = CASES[case][1], CASES[case][4].get("window", 64)
    edges = {0, 1, 63, 64, 511, 512, 513, window - 1, window, window + 1, window + 63, window + 64, 512 + window}
    for position in sorted((edges | {length - 1}) & set(range(length))):
        assert np.abs(truth.run((0, position, 1))[0] - wholes[case][position]).max() < 2e-5


@pytest.mark.parametrize("sizes", [(1,), (7,), (64,), (512,), (1, 100, 3, 2, 16)], ids=str)
@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_chunks_and_decode_give_the_same_bits(
    backend: CpuBackend, wholes: list[np.ndarray], case: int, sizes: tuple[int, ...]
) -> None:
    assert same_bits(make(backend, case).chunked(sizes), wholes[case])


@pytest.mark.parametrize("page_size", [16, 32, 128])
@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_page_sizes_and_threads_give_the_same_bits(
    backend: CpuBackend, one_thread: CpuBackend, wholes: list[np.ndarray], case: int, page_size: int
) -> None:
    for made in (backend, one_thread):
        world = make(made, case, page_size=page_size)
        assert same_bits(world.whole(), wholes[case])
        assert same_bits(world.run((0, CASES[case][1] - 1, 1))[0], wholes[case][-1])


@pytest.mark.parametrize("room", [0, 1 << 13, 1 << 20])
@pytest.mark.parametrize("case", [4, 5, 6, 9], ids=[IDS[i] for i in (4, 5, 6, 9)])
def test_split_or_not_gives_the_same_bits(
    backend: CpuBackend, wholes: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, case: int, room: int
) -> None:
    monkeypatch.setattr(cpu, "PARTIAL_BYTES", room)
    world = make(backend, case)
    world.whole()
    for at in (511, 513, CASES[case][1] - 5):
        assert same_bits(world.run((0, at, 3)), wholes[case][at : at + 3])


def test_a_window_that_reaches_over_everything_changes_no_bit(backend: CpuBackend) -> None:
    shape, length = Shape(64, 2, 3), 700
    assert same_bits(build(backend, shape, length, window=length).whole(), build(backend, shape, length).whole())


@pytest.mark.parametrize("case", [0, 1, 2, 4, 5, 7])
def test_nothing_before_the_window_is_read(backend: CpuBackend, wholes: list[np.ndarray], case: int) -> None:
    """NaN in every slot before the window's first (every byte 0xFF is one, in all types): pages may be gone there."""
    shape, length, _, page_size, extra = CASES[case]
    for count in (1, 3, 40):
        world = make(backend, case)
        world.whole()
        start = length - count
        oldest = start - extra["window"] + 1
        gone = oldest // page_size
        for part in (part for page in world.tables[0][:gone] for part in world.pool.parts(page)):
            part[...] = 0xFF
        nan = np.full((oldest % page_size, shape.dims), np.nan, np.float32)
        for head in range(shape.kv_heads if len(nan) else 0):
            world.pool.write(int(world.tables[0][gone]), 0, head, slice(0, len(nan)), nan, nan)
        assert same_bits(world.run((0, start, count)), wholes[case][start:])


def test_first_positions_are_seen_as_if_they_stood_before_the_window(backend: CpuBackend) -> None:
    """A row sees what the row at first + window - 1 of a text without all between would: keys counted in the cache."""
    shape, length, window, first = Shape(64, 2, 3), 600, 100, 4
    long = build(backend, shape, length, kv="f32", window=window, first=first)
    long.whole()
    for position in (104, 105, 300, 599):
        begin, angles = position - window + 1, rotary(shape.dims, length)
        kept = [*range(first), *range(begin, position + 1)]
        K, V = numbers(2, length, 2 * shape.dims, scale=1.5), numbers(3, length, 2 * shape.dims)
        q = long.queries[position].reshape(-1, shape.dims).astype(np.float64)
        out = np.empty_like(q)
        for head in range(len(q)):
            kv = slice(head // 3 * shape.dims, (head // 3 + 1) * shape.dims)
            turned = [turn(K[j, kv].astype(np.float64), angles, i) for i, j in enumerate(kept)]
            scores = np.array(turned) @ turn(q[head], angles, len(kept) - 1) * shape.dims**-0.5
            p = np.exp(scores - scores.max())
            out[head] = p / p.sum() @ V[kept][:, kv]
        assert np.abs(long.run((0, position, 1))[0] - out.reshape(-1)).max() < 2e-5


def test_too_many_heads_of_a_group_for_first_positions(backend: CpuBackend) -> None:
    with pytest.raises(UsageError, match="more than 128 heads"):
        build(backend, Shape(16, 1, 129), 32, window=16, first=4)
    build(backend, Shape(16, 1, 128), 32, window=16, first=4).whole()


def turn(x: np.ndarray, angles: Rotary, position: int) -> np.ndarray:
    a, b = np.split(x, 2)
    cos, sin = angles.cos[position].astype(np.float64), angles.sin[position].astype(np.float64)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


def test_a_window_is_what_a_shorter_text_would_see(backend: CpuBackend) -> None:
    """Without angles, a window of 1 gives back the position's own V."""
    world = build(backend, Shape(16, 1, 1), 100, kv="f32", rotate=False, window=1)
    assert np.array_equal(world.whole(), numbers(3, 100, 16))
