"""Where things lie in the tables that Python writes and the compiled loop reads. Plain integers, no imports.

* an **op** is a row of `OP_SLOTS` int64: its code, which earlier ops it waits for, its arguments (addresses, sizes);
* the **context** is one row of int64 for the whole step: how many rows, where the batch's arrays are;
* a **sequence**, an **item** (a piece of attention) and a **merge** are rows of int64 as well.
"""

from __future__ import annotations

# --- an op: [code, wait_from, wait_to, unit, arguments...]; ops wait_from..wait_to-1 must be done before it starts ----
OP_SLOTS = 27
CODE, WAIT_FROM, WAIT_TO = 0, 1, 2
UNIT = 3  # address of the compiled unit that runs it; 0: the loop itself does
ARG = 4  # the first argument
ATTEND_CHOSEN, OBSERVED = 22, 13  # arguments that the loop reads as well: whose items; positions that are noted

PLAN, EMBED, RMS_NORM, LAYER_NORM, MATMUL, ROTARY_STORE, ATTEND, MERGE, GATE, LIKELIEST, CAP = range(1, 12)
CHOOSE, PLACE, GATHER, EXPERTS, COMBINE = range(12, 17)  # of a mixture of experts
COPY, NORMALISE, OBSERVE = range(17, 20)  # what a policy wants to see of a step
SEAL = 26
SKETCH, BEST = 27, 28  # of tokens that choose the pages they read
READ, FMA_PEAK, CONVERT, FIND_NONFINITE = range(20, 24)
DRAW, RATE = range(24, 26)  # tokens from rows of logits; log-probabilities

# --- the context ----------------------------------------------------------------------------------------------------
(
    ROWS,  # rows of this step
    SAMPLED,  # rows whose logits are asked for
    SAMPLED_ROWS,  # address of int32: which rows
    TOKENS,  # address of int32 per row
    POSITIONS,  # address of int32 per row
    SLOTS,  # address of int32 per row: where in its sequence's pages K and V go
    ROW_PAGES,  # address of int32 [groups][rows]: the page its K and V go to
    SEQUENCES,  # number of sequences
    SEQUENCE_TABLE,  # address of their rows
    ITEMS,
    ITEM_TABLE,
    MERGES,
    MERGE_TABLE,
    CHOSEN_ITEMS,  # the same for layers in which tokens choose what they read
    CHOSEN_ITEM_TABLE,
    CHOSEN_MERGES,
    CHOSEN_MERGE_TABLE,
    ITEM_CAPACITY,
    PARTIALS,  # address of the partial results of split attention
    PARTIAL_ROWS,  # how many query rows (times KV heads) fit there
    GROUP,  # query heads per KV head
    KV_HEADS,
    PAGE_SIZE,
    SCRATCH,  # address of thread 0's scratch
    SCRATCH_BYTES,  # per thread
    THREADS,
    COUNTERS,  # address of int64 per op: pieces done, then pieces taken of each thread's share
    FULL,  # pages that this step fills
    FULL_PAGES,  # address of int32 [groups][FULL]: their ids
    TIMES,  # address of two int64 per thread and op: nanoseconds waited, nanoseconds worked; 0: nobody asks
    CONTEXT_SLOTS,
) = range(31)
CHOSEN = CHOSEN_ITEMS - ITEMS

# --- the board of a team (see `board`): lines of eight int64, and what its entry can be asked to do -------------------
BOARD_LINE = 8
BOARD_STEP, BOARD_TABLE, BOARD_COUNT, BOARD_CONTEXT, BOARD_THREADS = range(5)
START, LEAD, SERVE, LEAVE, JOIN = range(5)

# --- a sequence of the batch ----------------------------------------------------------------------------------------
SEQUENCE_SLOTS = 5
# first row, its new tokens, first position, address of int32 [groups][n]: page ids, bytes from a group to the next
SEQ_ROW, SEQ_TOKENS, SEQ_POSITION, SEQ_PAGES, SEQ_STRIDE = range(5)

# --- a piece of attention: a tile of query rows and a range of splits -----------------------------------------------
# Where tokens choose, a row is alone; its pages are those it reads, a table a KV head, and positions count those alone.
ITEM_SLOTS = 8
ITEM_ROW, ITEM_TOKENS, ITEM_POSITION, ITEM_PAGES, ITEM_STRIDE, ITEM_FROM, ITEM_TO, ITEM_PARTIAL = range(8)

# --- a row of logits that a token is chosen from: int64, then float64 -----------------------------------------------
(
    DRAW_LOGITS,
    DRAW_SIZE,
    DRAW_LIKELIEST,  # -1: not known
    DRAW_ALONE,  # whether no other row lies there: it may be changed for a while
    DRAW_IDS,  # address of int64
    DRAW_VALUES,  # address of float32, one for each
    DRAW_HELD,  # how many ids become minus infinity; are biased, next; are penalised, last
    DRAW_BIASED,
    DRAW_SEEN,
    DRAW_REPETITION,
    DRAW_PRESENCE,
    DRAW_FREQUENCY,
    DRAW_INVERSE,  # 1 / temperature; 0: greedy
    DRAW_TOP_K,
    DRAW_TOP_P,
    DRAW_MIN_P,
    DRAW_TYPICAL_P,
    DRAW_NUMBER,  # from 0 to 1
    DRAW_SLOTS,
) = range(19)

# --- a row whose log-probabilities are asked for; its results, int64 or float64, then ids of the likeliest
RATE_LOGITS, RATE_SIZE, RATE_LIKELIEST, RATE_TOKEN, RATE_COUNT, RATE_OUT, RATE_LOGITS_OUT = range(7)
RATED_LARGEST, RATED_TOP, RATED_SUM, RATED_RANK, RATED_LOGIT, RATED_IDS = range(6)

WHOLE = 10_000  # the share that is all pages (see `cache.policy.Choice`)
FEW_CHOOSERS = 4  # a thread: fewer share out their pages
ALWAYS = 3  # pages that a token which chooses always reads
EVERYTHING = 1 << 40  # the window of a row that sees all positions
TILE = 64  # positions of a tile, at multiples of 64
SPLIT = 512  # positions of a split, at multiples of 512; partial results of splits are folded in order
TILE_ROWS = 96  # query rows (tokens x heads of a group) that an item aims at

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
DTYPES = ("f32", "f16", "bf16")

PRIVATE_ROWS = 2  # up to so many rows each thread norms for itself, into rows of its own: no thread waits for another

# --- pieces of work -------------------------------------------------------------------------------------------------
ROWS_A_PIECE = 4  # rows of an op that works row by row
CONVERT_ROWS = 64  # weight rows
EXPERT_ROWS = 32  # weight rows of one expert
SEARCH_BLOCKS = 1 << 13  # blocks of weights
