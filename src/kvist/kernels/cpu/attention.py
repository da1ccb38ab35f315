"""Paged attention: softmax(q K^T) V over pages, one arithmetic for every shape of batch.

For a query row at position t the positions 0..t are cut at multiples of 512 into *splits*, a split at multiples of
64 into *tiles*. Within a split the tiles are taken in order with a running maximum (Milakov & Gimelshein 2018); the
results of the splits are folded in order. Cuts lie at absolute positions, so a row's arithmetic depends on t and on
nothing else: not on the page size, the chunk it was computed in, the rows beside it, or on how many threads shared
the splits.

A row with a *window* sees the positions t - window + 1..t. Its first split is the one its window begins in, and tiles
that no row of an item sees are not touched. In the tile that holds a window's edge, as in the one that holds t, what a
row sees depends on its token: there the heads of one token are weighed together, token by token.

An *item* is a tile of query rows (some tokens x the query heads of one KV head, so K and V are read once for the
group) and either all its splits, folded at once, or one split, left as a partial result that `merge` folds later.

Few rows read K and V where they lie, and meanwhile ask for what comes next: the item's next tile or, in its last one,
the first tile of the piece that probably follows. Many rows copy a tile as float32 first and pass by it six at a time.

Scratch of a thread, float32, R = rows of an item, d = head size::

    q [R][d]  p [R][64]  copies  part [R][d]  total [R][d]  part: max, sum [R]  total: max, sum [R]
    copies: K [4][d][16]  V [64][d]; of packed layers what `attention_sealed` needs

Where tokens choose the pages they read (see `best_pages`), the pages of an item are those, as if there were no others:
position, tiles and splits count what is read, so a row that reads all has the bits of one that does not choose.

Queries that are turned back towards the first positions (see `attention_first`) lie where K and V are copied to.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_extras import join_sink, share_of, soften
from kvist.kernels.cpu.attention_first import make_attend_first
from kvist.kernels.cpu.attention_plan import ITEM_BYTES
from kvist.kernels.cpu.attention_row import LOWEST, NEVER, finish, fold
from kvist.kernels.cpu.attention_rows import make_copy_tile, make_score_rows, make_weigh_rows
from kvist.kernels.cpu.attention_sealed import first_maxima, make_attend_sealed_tile, sealed_scratch
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.places import block_at, head_at
from kvist.kernels.cpu.scalar import arg, arg_address, arg_f32, get_f32, put_f32, slot
from kvist.kernels.cpu.vector import mul, splat
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load_f32, store_f32

TILE, SPLIT = abi.TILE, abi.SPLIT
FEW_ROWS = 8  # up to here a copy of the tile does not pay


def make_attend_tile(dtype: str, score_few: Any, weigh_few: Any) -> Any:
    """One tile of positions for all rows of an item that may see it. until: behind the item's last tile."""
    itemsize, copy_tile = ITEMSIZE[dtype], make_copy_tile(dtype)
    score_many, weigh_many = make_score_rows("f32", 0), make_weigh_rows("f32", False)

    @jit
    def weigh_part(p: int, rows: int, v: int, low: int, valid: int, acc: int, dims: int, following: int) -> None:
        """Rows over the slots low..valid-1 of a block, as far as they lie in it."""
        low, valid = max(0, low), min(16, valid)
        if low < valid:
            offset = low * dims * itemsize
            weigh_few(p + low * 4, rows, v + offset, valid - low, acc, dims, following + offset)

    @jit
    def weigh_whole(
        p: int, rows: int, b0: int, b1: int, b2: int, b3: int, v: int, acc: int, dims: int, n2: int, n3: int
    ) -> None:  # fmt: skip
        """Rows over all slots of a tile; v: from K to V of a block."""
        weigh_few(p, rows, b0 + v, 16, acc, dims, n2)
        weigh_few(p + 64, rows, b1 + v, 16, acc, dims, n2 + v)
        weigh_few(p + 128, rows, b2 + v, 16, acc, dims, n3)
        weigh_few(p + 192, rows, b3 + v, 16, acc, dims, n3 + v)

    @jit
    def attend_tile(
        op: int, item: int, kv_head: int, tile: int, until: int, rows: int, group: int, position: int, dims: int,
        pages: int, page_size: int, strides: int, head: int, q: int, p: int, copy: int, acc: int, row_max: int,
        row_sum: int, window: int, cap: float, follower: int, n_kv_head: int, n_begin: int, n_live: int,
    ) -> None:  # fmt: skip
        block_bytes = 2 * 16 * dims * itemsize
        begin = tile * TILE
        last = position + (rows - 1) // group  # the newest position any row sees
        live = min(TILE, last + 1 - begin)  # slots that hold something
        skip = max(0, begin - position) * group  # rows whose position is before the tile
        stop = min(rows, (begin + TILE - 1 + window - position) * group)  # rows whose window begins after it
        # blocks past `live`, or before every window, may not exist: their scores are masked, any address will do
        old, new = max(0, position - window + 1 - begin) // 16, (live - 1) // 16
        b0 = block_at(pages, begin + old * 16, page_size, strides, head, block_bytes)
        b1 = block_at(pages, begin + 16, page_size, strides, head, block_bytes) if old < 1 <= new else b0
        b2 = block_at(pages, begin + 32, page_size, strides, head, block_bytes) if old < 2 <= new else b0
        b3 = block_at(pages, begin + 48, page_size, strides, head, block_bytes) if old < 3 <= new else b0
        # rows from `whole` to `clear` see the whole tile
        whole = min(stop, max(skip, (begin + TILE - 1 - position) * group))
        clear = min(stop, max(whole, (begin + window - position) * group))
        edges = whole - skip + stop - clear  # rows before and after them, which see a part
        v, qs, ps = 16 * dims * itemsize, q + skip * dims * 4, p + skip * 256
        if stop - skip > FEW_ROWS:
            k_copy, v_copy = copy, copy + TILE * dims * 4
            copy_tile(b0, b1, b2, b3, dims, k_copy, v_copy)
            k1, k2, k3 = k_copy + dims * 64, k_copy + dims * 128, k_copy + dims * 192
            score_many(qs, stop - skip, dims, k_copy, k1, k2, k3, ps, 0, 0, 0, 0)
            soften(p, skip, stop, group, position, begin, row_max, row_sum, acc, dims, window, cap, 0, 0, NEVER)
            for r in range(skip, skip + edges, group):  # the heads of a token see the same slots
                r += 0 if r < whole else clear - whole
                end_slot = position + r // group + 1 - begin
                low = max(0, end_slot - window)
                pr, vr, n = p + r * 256 + low * 4, v_copy + low * dims * 4, min(TILE, end_slot) - low
                weigh_many(pr, group, vr, n, acc + r * dims * 4, dims, 0)
            weigh_many(p + whole * 256, clear - whole, v_copy, TILE, acc + whole * dims * 4, dims, 0)
            return
        n_pages = page_ids(follower, op, n_kv_head)
        n_head = head_at(head, n_kv_head - kv_head, page_size, strides)
        if tile + 1 < until:
            n_pages, n_begin, n_live, n_head = pages, begin + TILE, last + 1 - begin - TILE, head
        # asked for in the order it lies in memory, evenly over the work: of eight parts three, one, then four
        n0 = block_at(n_pages, n_begin, page_size, strides, n_head, block_bytes)
        n1 = block_at(n_pages, n_begin + 16, page_size, strides, n_head, block_bytes) if n_live > 16 else n0
        n2 = block_at(n_pages, n_begin + 32, page_size, strides, n_head, block_bytes) if n_live > 32 else n0
        n3 = block_at(n_pages, n_begin + 48, page_size, strides, n_head, block_bytes) if n_live > 48 else n0
        share = share_of(v, stop - skip)
        score_few(qs, stop - skip, dims, b0, b1, b2, b3, ps, n0, n0 + v, n1, 0)
        soften(p, skip, stop, group, position, begin, row_max, row_sum, acc, dims, window, cap, n1 + v, share, NEVER)
        for r in range(skip, skip + edges, group):  # the heads of a token see the same slots
            r += 0 if r < whole else clear - whole
            end_slot = position + r // group + 1 - begin
            low, valid = max(0, end_slot - window), min(TILE, end_slot)
            pr, ar = p + r * 256, acc + r * dims * 4
            weigh_part(pr, group, b0 + v, low, valid, ar, dims, n2)
            weigh_part(pr + 64, group, b1 + v, low - 16, valid - 16, ar, dims, n2 + v)
            weigh_part(pr + 128, group, b2 + v, low - 32, valid - 32, ar, dims, n3)
            weigh_part(pr + 192, group, b3 + v, low - 48, valid - 48, ar, dims, n3 + v)
        weigh_whole(p + whole * 256, clear - whole, b0, b1, b2, b3, v, acc + whole * dims * 4, dims, n2, n3)

    return attend_tile


@jit
def clear(rows: int, dims: int, acc: int, row_max: int, row_sum: int, maxima: int) -> None:
    """Begin a split: nothing summed. maxima: address of those that rows begin with (0: they have none)."""
    for r in range(rows):
        put_f32(row_max + r * 4, LOWEST if maxima == 0 else get_f32(maxima + r * 4))
        put_f32(row_sum + r * 4, 0.0)
        for d in range(0, dims, 16):
            store_f32(acc + (r * dims + d) * 4, splat(0.0))


@jit
def first_split(position: int, window: int) -> int:
    """The split in which what a row sees begins."""
    return max(0, position - window + 1) // SPLIT


@jit
def first_tile(item: int, window: int) -> tuple[int, int]:
    """Where an item's first tile begins, and how many positions there are from there on."""
    position = slot(item, abi.ITEM_POSITION)
    begin = max(slot(item, abi.ITEM_FROM) * SPLIT, max(0, position - window + 1) // TILE * TILE)
    return begin, position + slot(item, abi.ITEM_TOKENS) - begin


@jit
def item_of(ctx: int, op: int, piece: int) -> tuple[int, int]:
    """A piece's item and KV head."""
    chosen, kv_heads = arg(op, abi.ATTEND_CHOSEN), slot(ctx, abi.KV_HEADS)
    return slot(ctx, abi.ITEM_TABLE + chosen) + piece // kv_heads * ITEM_BYTES, piece % kv_heads


@jit
def page_ids(item: int, op: int, kv_head: int) -> int:
    """Address of an item's page ids: those of the group that the op's layer is in, or those a KV head has chosen."""
    table = arg(op, 11) if arg(op, abi.ATTEND_CHOSEN) == 0 else kv_head
    return slot(item, abi.ITEM_PAGES) + table * slot(item, abi.ITEM_STRIDE)


@jit
def scale_rows(source: int, stride: int, rows: int, group: int, dims: int, scale: Any, q: int) -> None:
    """Copy the query rows of an item, a token's heads together, times the scale of its scores."""
    for r in range(rows):
        for d in range(0, dims * 4, 64):
            store_f32(
                q + r * dims * 4 + d, mul(load_f32(source + r // group * stride + r % group * dims * 4 + d), scale)
            )


def make_attend(dtype: str, packed: tuple[str, str] | None = None) -> Any:
    """The kernel that computes one (item, KV head) over pages of `dtype`; packed: how full pages hold K and V."""
    score_few, weigh_few = make_score_rows(dtype, 3), make_weigh_rows(dtype, True)
    if packed:
        begin_item, attend_tile = make_attend_sealed_tile(dtype, *packed)
        room, begun = sealed_scratch, first_maxima
    else:
        begin_item = jit(lambda op, rows, group, position, dims, pages, page_size, strides, head, q, p, copy: None)
        attend_tile = make_attend_tile(dtype, score_few, weigh_few)
        room, begun = jit(lambda rows, dims: 2 * TILE * dims * 4), jit(lambda copy, rows, dims: 0)
    attend_first = make_attend_first(dtype, score_few, weigh_few)

    @jit
    def attend(ctx: int, op: int, piece: int, tid: int) -> None:
        group, kv_heads = slot(ctx, abi.GROUP), slot(ctx, abi.KV_HEADS)
        query, q_stride, out = arg(op, 0), arg(op, 1), arg(op, 2)
        dims, factor = arg(op, 3), arg_f32(op, 5)
        window, cap, sinks = arg(op, 6), arg_f32(op, 7), arg(op, 8)
        item, kv_head = item_of(ctx, op, piece)
        row, tokens = slot(item, abi.ITEM_ROW), slot(item, abi.ITEM_TOKENS)
        position, pages = slot(item, abi.ITEM_POSITION), page_ids(item, op, kv_head)
        begin_split = max(slot(item, abi.ITEM_FROM), first_split(position, window))
        last_split, partial = slot(item, abi.ITEM_TO), slot(item, abi.ITEM_PARTIAL)
        page_size, strides = slot(ctx, abi.PAGE_SIZE), arg_address(op, 9)
        head = head_at(arg(op, 4), kv_head, page_size, strides)
        rows = tokens * group
        q = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        p = q + rows * dims * 4
        copy = p + rows * 256
        acc = copy + room(rows, dims)
        total = acc + rows * dims * 4
        row_max = total + rows * dims * 4
        row_sum = row_max + rows * 4
        total_max = row_sum + rows * 4
        total_sum = total_max + rows * 4
        if partial >= 0:
            at = (partial + kv_head * rows) * (dims + 2) * 4
            acc = slot(ctx, abi.PARTIALS) + at
            row_max = acc + rows * dims * 4
            row_sum = row_max + rows * 4
        place = row * q_stride + kv_head * group * dims * 4
        # the piece that probably follows: its first tile is asked for during this one's last
        after = piece + 1 if piece + 1 < slot(ctx, abi.ITEMS + arg(op, abi.ATTEND_CHOSEN)) * kv_heads else piece
        follower, next_kv_head = item_of(ctx, op, after)
        n_begin, n_live = first_tile(follower, window)
        scale_rows(query + place, q_stride, rows, group, dims, splat(factor), q)
        begin_item(op, rows, group, position, dims, pages, page_size, strides, head, q, p, copy)
        last, oldest = position + tokens - 1, max(0, position - window + 1)
        until = min(last_split * (SPLIT // TILE), last // TILE + 1)
        for split in range(begin_split, last_split):
            clear(rows, dims, acc, row_max, row_sum, begun(copy, rows, dims))
            if arg(op, 12) > 0:  # its queries go where many rows copy a tile to
                attend_first(
                    op, split, rows, group, position, pages, page_size, strides, head, q, p, copy, acc, row_max,
                    row_sum,
                )  # fmt: skip
            end = min((split + 1) * (SPLIT // TILE), until)
            for tile in range(max(split * (SPLIT // TILE), oldest // TILE), end):
                attend_tile(
                    op, item, kv_head, tile, until, rows, group, position, dims, pages, page_size, strides, head, q, p,
                    copy, acc, row_max, row_sum, window, cap, follower, next_kv_head, n_begin, n_live,
                )  # fmt: skip
            if partial < 0:
                skip = max(0, split * SPLIT - position) * group
                for r in range(skip, rows):
                    begins = first_split(position + r // group, window)
                    if split >= begins:
                        fold(
                            total + r * dims * 4, total_max + r * 4, total_sum + r * 4, acc + r * dims * 4,
                            row_max + r * 4, row_sum + r * 4, dims, split == begins,
                        )  # fmt: skip
        if partial < 0:
            write_rows(out + place, q_stride, rows, group, dims, sinks, kv_head, total, total_max, arg(op, 21))

    return attend


@jit
def write_rows(
    out: int, stride: int, rows: int, group: int, dims: int, sinks: int, kv_head: int, total: int, total_max: int,
    signs: int,
) -> None:  # fmt: skip
    """What the rows of an item have summed, divided; sinks: address of learned scores that take part (0: none)."""
    total_sum = total_max + rows * 4
    for r in range(rows):
        acc = total + r * dims * 4
        if sinks != 0:
            join_sink(sinks + (kv_head * group + r % group) * 4, acc, total_max + r * 4, total_sum + r * 4, dims)
        finish(out + r // group * stride + (r % group) * dims * 4, acc, total_sum + r * 4, dims, signs)


def make_unit(name: str) -> Any:
    """The entry of the unit: one (item, KV head). name: the type of the pages, and for packed layers K's and V's."""
    dtype, *packed = name.split("_")
    attend = make_attend(dtype, (packed[0], packed[1]) if packed else None)

    def entry(ctx: int, op: int, piece: int, tid: int) -> int:
        attend(ctx, op, piece, tid)
        return 0

    return entry
