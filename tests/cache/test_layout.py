from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvist.cache.codec import FLOATS, codec
from kvist.cache.layout import BLOCK, PAGE_SIZES, LayerSpec, PageLayout
from kvist.errors import UsageError

specs = st.lists(st.builds(LayerSpec, st.integers(1, 9), st.integers(1, 16).map(lambda n: 16 * n)), min_size=1)
layouts = st.builds(
    PageLayout, specs.map(tuple), st.sampled_from(PAGE_SIZES), st.sampled_from(FLOATS).map(lambda name: codec(name))
)


def uniform(layers: int, kv_heads: int, head_dim: int, name: str = "f16", page_size: int = 16) -> PageLayout:
    return PageLayout((LayerSpec(kv_heads, head_dim),) * layers, page_size, codec(name))


@given(layouts)
def test_the_formula(layout: PageLayout) -> None:
    numbers = 2 * sum(spec.kv_heads * spec.head_dim for spec in layout.layers)
    assert layout.bytes_per_token == numbers * layout.codec.itemsize
    assert layout.page_bytes == layout.bytes_per_token * layout.page_size


@given(layouts)
def test_the_parts_lie_end_to_end(layout: PageLayout) -> None:
    end = 0
    for layer, spec in enumerate(layout.layers):
        assert layout.place(0, layer, 0) == end * layout.extent_pages
        assert layout.layer_bytes(layer) == spec.kv_heads * layout.head_bytes(layer)
        assert layout.head_bytes(layer) == layout.page_size // BLOCK * layout.block_bytes(layer)
        assert layout.block_bytes(layer) == 2 * layout.v_offset(layer)
        assert layout.v_offset(layer) % 64 == 0
        end += layout.layer_bytes(layer)
    assert end == layout.page_bytes


@given(layouts, st.integers(1, 100))
def test_places_fill_the_extents_without_gap_or_overlap(layout: PageLayout, num_pages: int) -> None:
    pages = layout.extents(num_pages) * layout.extent_pages
    assert num_pages <= pages < num_pages + layout.extent_pages
    parts = sorted(
        (layout.place(page, layer, head), layout.head_bytes(layer))
        for page in range(pages)
        for layer, spec in enumerate(layout.layers)
        for head in range(spec.kv_heads)
    )
    assert parts[0][0] == 0 and all(a + size == b for (a, size), (b, _) in pairwise(parts))
    assert sum(parts[-1]) == layout.extents(num_pages) * layout.extent_bytes == layout.sketch_offset(0, num_pages)


def test_a_head_goes_on_from_page_to_page() -> None:
    layout = uniform(30, 3, 64, "f16")
    places = [layout.place(page, 7, 2) for page in range(64)]
    assert [b - a for a, b in pairwise(places)] == [4_096] * 31 + [layout.extent_bytes - 31 * 4_096] + [4_096] * 31


@given(layouts, st.integers(0, 10_000))
def test_counting_pages(layout: PageLayout, n: int) -> None:
    pages = layout.pages_for(n)
    assert (pages - 1) * layout.page_size < n <= pages * layout.page_size


@given(layouts, layouts)
def test_identity_tells_layouts_apart(a: PageLayout, b: PageLayout) -> None:
    assert (a.identity == b.identity) == (a == b)


def test_a_default_page_of_smollm2() -> None:
    layout = uniform(30, 3, 64, "bf16")
    assert (layout.bytes_per_token, layout.page_bytes, layout.block_bytes(0)) == (23_040, 368_640, 4_096)
    assert (layout.v_offset(0), layout.head_bytes(0), layout.place(0, 29, 0)) == (2_048, 4_096, 32 * 29 * 12_288)


class TestPublishedFigures:
    """The arithmetic rows of CLAIMS.md."""

    def test_70b_with_64_heads_takes_262_gb_at_100_000_tokens(self) -> None:
        layout = uniform(80, 64, 128)
        assert layout.bytes_per_token == 2_621_440
        assert layout.pool_bytes(layout.pages_for(100_000)) == 262_144_000_000

    def test_gpt3_like_takes_1_05_gb_at_2_000_tokens(self) -> None:
        layout = uniform(32, 32, 128)
        assert layout.pool_bytes(layout.pages_for(2_000)) == 1_048_576_000

    def test_70b_takes_10_7_gb_not_40_at_4_096_tokens(self) -> None:
        layout = uniform(80, 64, 128)
        assert layout.pool_bytes(layout.pages_for(4_096)) == 10_737_418_240 == 10 * 2**30
        assert 4 * layout.pool_bytes(layout.pages_for(4_096)) == 40 * 2**30

    def test_llama_2_70b_with_its_8_kv_heads_takes_1_34_gb_at_4_096_tokens(self) -> None:
        layout = uniform(80, 8, 128)
        assert layout.pool_bytes(layout.pages_for(4_096)) == 1_342_177_280

    def test_fewer_kv_heads_divide_the_cache_by_just_that(self) -> None:
        mha, gqa, mqa = (uniform(32, heads, 128).bytes_per_token for heads in (32, 8, 1))
        assert (mha // gqa, mha // mqa) == (4, 32)

    def test_16_bits_are_half_of_32(self) -> None:
        assert uniform(2, 3, 64, "f32").page_bytes == 2 * uniform(2, 3, 64, "bf16").page_bytes


@pytest.mark.parametrize("page_size", [-16, 0, 1, 8, 17, 48, 256])
def test_other_page_sizes_are_refused(page_size: int) -> None:
    with pytest.raises(UsageError, match="choose one of 16, 32, 64, 128"):
        uniform(1, 1, 16, page_size=page_size)


@pytest.mark.parametrize("head_dim", [-16, 0, 1, 8, 20, 80 + 1])
def test_head_sizes_that_are_no_whole_vectors_are_refused(head_dim: int) -> None:
    with pytest.raises(UsageError, match="not a multiple of 16"):
        LayerSpec(1, head_dim)


def test_empty_layouts_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        LayerSpec(0, 64)
    with pytest.raises(UsageError, match="at least one layer"):
        PageLayout((), 16, codec("f32"))
