"""Packed codecs: numbers against a definition of their own, number by number; bytes against the formula; what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kvist.cache.codec import PACKED, Packed, any_codec, codec
from kvist.cache.codec.packed import pack, signs, unpack
from kvist.cache.layout import PAGE_SIZES, LayerSpec, PageLayout
from kvist.cache.pool import PagePool
from kvist.errors import UsageError

SIDES = pytest.mark.parametrize("keys", [True, False], ids=["k", "v"])
EVERY = pytest.mark.parametrize("name", PACKED)
BITS = {
    "int3": 3.5,
    "int6": 6.5,
    "int8": 8.5,
    "fp8": 8.25,
    "int5": 5.5,
    "int4": 4.5,
    "lm4": 4.25,
    "lm3": 3.25,
    "kivi4": 4.75,
    "kivi2": 2.75,
}
"""Of a number at head size 64, K and V together, in pages of 64."""


def packed(name: str) -> Packed:
    found = any_codec(name)
    assert isinstance(found, Packed)
    return found


def numbers(slots: int, dims: int, seed: int = 1) -> np.ndarray:
    """Normal, with a dim far off and a position far larger than the others, as K has them."""
    made = np.random.RandomState(seed).standard_normal((slots, dims)).astype(np.float32)
    made[:, dims // 3] += 6
    made[slots // 2] *= 9
    return made


def sets(name: str, dims: int, *, keys: bool, slots: int) -> list[tuple[slice, slice]]:
    """The numbers, (slots, dims), that have a scale in common."""
    found = packed(name)
    if keys and found.channels:
        return [(slice(None), slice(dim, dim + 1)) for dim in range(dims)]
    wide = found.group if dims % found.group == 0 else dims
    return [(slice(s, s + 1), slice(d, d + wide)) for s in range(slots) for d in range(0, dims, wide)]


def e4m3() -> list[float]:
    """All finite numbers of 4 bits of exponent and 3 of precision."""
    small = [m / 8 * 2**-6 for m in range(8)]
    large = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return [sign * number for number in small + large for sign in (1, -1)]


def bell(bits: int) -> list[float]:
    """The steps that are best for a normal distribution (Max 1960)."""
    half = {4: (0.128, 0.388, 0.657, 0.942, 1.256, 1.618, 2.069, 2.733), 3: (0.245, 0.756, 1.344, 2.152)}[bits]
    return [sign * step for step in half for sign in (1, -1)]


def can_be(name: str, part: np.ndarray) -> tuple[np.ndarray, float]:
    """The numbers that a set may become, and how far rounding of its scale and offset to 16 bits may move them."""
    found, (low, high) = packed(name), (float(part.min()), float(part.max()))
    if found.grid == "e4m3":
        top = np.abs(part).max()
        return np.array(e4m3()) * top / 448, 2**-11 * top
    if found.grid == "bell":
        scale = math.sqrt(float((part.astype(np.float64) ** 2).mean()))
        return np.array(bell(found.bits)) * scale, (2**-11 * 2.8 + 0.014 + 0.022) * scale
    steps = 2**found.bits - 1
    return low + np.arange(steps + 1) * (high - low) / steps, 2**-10 * (3 * (high - low) + abs(low))


@EVERY
@SIDES
@pytest.mark.parametrize("dims", [16, 32, 48, 64, 80, 96, 128, 256])
def test_every_number_becomes_the_nearest_that_there_is(name: str, keys: bool, dims: int) -> None:
    slots = 64
    given = numbers(slots, dims)
    found = unpack(packed(name), *pack(packed(name), given, keys=keys), dims, keys=keys)
    assert found.dtype == np.float32 and found.shape == given.shape
    if packed(name).grid == "bell":
        found = found / {"lm4": 1.009618, "lm3": 1.035780}[name]  # the steps that numbers are near to
    for where in sets(name, dims, keys=keys, slots=slots)[::7]:
        allowed, slack = can_be(name, given[where])
        distance = np.abs(found[where].reshape(-1, 1) - allowed)
        assert (distance.min(1) <= slack).all(), "it is one of those that the scale allows"
        best = np.abs(given[where].reshape(-1, 1) - allowed).min(1)
        assert (np.abs(found[where] - given[where]).reshape(-1) <= best + 2 * slack).all(), "and the nearest"


@pytest.mark.parametrize(("name", "published"), [("lm4", 0.009497), ("lm3", 0.03454)])
def test_bell_grids_are_as_good_as_published(name: str, published: float) -> None:
    """The mean squared error of the best quantiser of a normal distribution (Max 1960, table 1).

    Here each position is scaled by its own deviation, not by the distribution's: that gains up to 5%.
    """
    given = np.random.RandomState(3).standard_normal((4096, 64)).astype(np.float32)
    found = unpack(packed(name), *pack(packed(name), given, keys=True), 64, keys=True)
    loss = float(np.square(found - given).mean())
    assert 0.95 * published < loss < published / (1 - published)
    assert abs(float((found * given).mean() / np.square(given).mean()) - 1) < published / 5, "not shorter on average"


@EVERY
@SIDES
def test_more_bits_err_less_and_what_is_constant_is_exact(name: str, keys: bool) -> None:
    found, zeros = packed(name), np.zeros((64, 64), np.float32)
    assert np.array_equal(unpack(found, *pack(found, zeros, keys=keys), 64, keys=keys), zeros)
    if found.offset:
        halves = np.full((64, 64), -2.5, np.float32)
        assert np.array_equal(unpack(found, *pack(found, halves, keys=keys), 64, keys=keys), halves)

    def error(one: str) -> float:
        given = np.random.RandomState(4).standard_normal((64, 64)).astype(np.float32)
        return float(np.square(unpack(packed(one), *pack(packed(one), given, keys=keys), 64, keys=keys) - given).mean())

    finer = {"int3": "int4", "int4": "int5", "int5": "int6", "int6": "int8", "lm3": "lm4", "kivi2": "kivi4"}
    if name in finer:
        assert error(finer[name]) < 0.5 * error(name)


@EVERY
@SIDES
def test_a_position_does_not_know_its_neighbours_but_in_kivi(name: str, keys: bool) -> None:
    found, given = packed(name), numbers(64, 64)
    other = given.copy()
    other[40:] *= 30
    one, two = (unpack(found, *pack(found, x, keys=keys), 64, keys=keys)[:40] for x in (given, other))
    assert np.array_equal(one, two) != (keys and found.channels)


@EVERY
def test_extreme_numbers_stay_finite(name: str) -> None:
    given = np.array([[1e6, -1e6, 1e-30, -0.0] * 16] * 64, np.float32)
    for keys in (True, False):
        assert np.isfinite(unpack(packed(name), *pack(packed(name), given, keys=keys), 64, keys=keys)).all()


@SIDES
def test_where_the_bits_of_int4_lie(keys: bool) -> None:
    """By the drawing: of vector k of quad q byte k, low nibbles of even quads; then 16 scales, then 16 offsets."""
    given = numbers(16, 32)
    _, blocks = pack(packed("int4"), given, keys=keys)
    raw = blocks[0].tobytes()
    assert len(raw) == 2 * 128 + 64
    scales = np.frombuffer(raw[256:], np.float16).astype(np.float64).reshape(2, 16)
    read = unpack(packed("int4"), np.empty(0, np.uint8), blocks, 32, keys=keys)
    for slot in range(16):
        for dim in range(32):
            cell, inner = divmod(dim, 16)
            vector, lane = (inner, slot) if keys else (slot, inner)
            quad, k = divmod(vector, 4)
            code = raw[cell * 128 + quad // 2 * 64 + lane * 4 + k] >> 4 * (quad % 2) & 15
            assert read[slot, dim] == np.float32(code * scales[0, slot] + scales[1, slot])


@EVERY
def test_bits_of_a_number_are_those_announced(name: str) -> None:
    layout = PageLayout((LayerSpec(3, 64, packed(name), packed(name)),), 64, codec("f16"))
    assert 8 * layout.bytes_per_token / (2 * 3 * 64) == BITS[name]


@EVERY
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("dims", [16, 48, 64, 128])
def test_pages_are_as_large_as_what_lies_in_them(name: str, page_size: int, dims: int) -> None:
    found = packed(name)
    spec = LayerSpec(2, dims, found, codec("f16")), LayerSpec(1, dims, found, found), LayerSpec(1, 32)
    if (found.channels and page_size < 64) or (found.rotated and name != "int8" and dims == 48):
        with pytest.raises(UsageError, match=f"codec {name} (keeps a scale of each channel|rotates heads)"):
            PageLayout(spec, page_size, codec("f16"))
        return
    layout, given = PageLayout(spec, page_size, codec("f16")), numbers(page_size, dims)
    k, v = (sum(part.nbytes for part in pack(found, given, keys=keys)) for keys in (True, False))
    assert layout.layer_bytes(0) == 2 * (k + page_size * dims * 2)
    assert layout.layer_bytes(1) == k + v
    assert layout.layer_bytes(2) == 2 * page_size * 32 * 2
    assert layout.page_bytes == sum(map(layout.layer_bytes, range(3)))
    for layer in range(3):
        size = layout.header_bytes(layer) + page_size // 16 * layout.block_bytes(layer)
        assert layout.head_bytes(layer) == size and layout.head_bytes(layer) % 32 == 0


@EVERY
@pytest.mark.parametrize("page_size", [64, 128])
def test_a_pool_gives_back_what_was_packed_and_nothing_else_changes(name: str, page_size: int) -> None:
    found, floats = packed(name), codec("bf16")
    pool = PagePool(PageLayout((LayerSpec(2, 64, found, found), LayerSpec(1, 64, found, floats)), page_size, floats), 3)
    places = [(page, layer, head) for page in range(3) for layer, head in ((0, 0), (0, 1), (1, 0))]
    given = {
        place: (numbers(page_size, 64, 2 * i), numbers(page_size, 64, 2 * i + 1)) for i, place in enumerate(places)
    }
    for place in sorted(places, key=lambda place: hash(place)):
        pool.pack(*place, *given[place])
    for (page, layer, head), (k, v) in given.items():
        own_k, own_v = pool.read(page, layer, head)
        assert np.array_equal(own_k, unpack(found, *pack(found, k, keys=True), 64, keys=True))
        expected = (
            floats.decode(floats.encode(v)) if layer else unpack(found, *pack(found, v, keys=False), 64, keys=False)
        )
        assert np.array_equal(own_v, expected)
        part_k, part_v = pool.read(page, layer, head, slice(5, 40))
        assert np.array_equal(part_k, own_k[5:40]) and np.array_equal(part_v, own_v[5:40])
    pool.close()


def test_layouts_of_other_codecs_are_other_layouts() -> None:
    plain = PageLayout((LayerSpec(1, 64),) * 2, 64, codec("f16"))
    k, v = (LayerSpec(1, 64, *pair) for pair in ((packed("int4"), packed("int8")), (packed("int8"), packed("int4"))))
    names = {replace(plain, layers=layers).identity for layers in ((k, v), (v, k), (k, k), (v, v))} | {plain.identity}
    assert len(names) == 5


def test_the_rotation_is_the_same_for_every_model() -> None:
    assert signs(64)[:8].tolist() == signs(128)[:8].tolist()
    assert set(signs(256).tolist()) == {1.0, -1.0} and abs(float(signs(256).sum())) < 64
