"""Decode steps of several methods and numbers of sequences, with nothing else: what a position of context costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from kvist.errors import UsageError
from kvist.eval.method import FLOOR, Method
from kvist.eval.speed import ROUNDS, STEPS, Turns, figures, step_seconds
from kvist.eval.text import DOMAINS, Document, documents, running
from kvist.llm import LLM

BUDGET = 512
"""Tokens of a step that computes a context, or the text around a pass key."""

MANY = 2 * ROUNDS
"""Turns of a context where nothing but steps is timed."""

Progress = Callable[[str, int, int], None]


def texts(llm: LLM, contexts: Sequence[int]) -> tuple[Document, ...]:
    """What steps at the ascending contexts run over: of each domain a document as long as the last one, at most."""
    return documents(llm.tokenizer.encode, len(DOMAINS), contexts[-1])


def timed(
    llm: LLM, methods: Sequence[Method], contexts: Sequence[int], counts: Sequence[int], read: Sequence[Document],
    report: Progress, rounds: int = ROUNDS,
) -> list[list[Turns]]:  # fmt: skip
    """Of each method and number of sequences the turns at the ascending contexts, over a text of `read`'s."""
    tables, longest = max(counts) * len(contexts), contexts[-1] + rounds * STEPS * len(counts)
    sizes = {
        "max_num_seqs": tables, "max_model_len": longest,
        "max_num_batched_tokens": max(BUDGET, tables), "enable_prefix_caching": False,
    }  # fmt: skip
    tokens = running(read, longest)
    report("timing decode steps, percent", 0, 100)
    with ExitStack() as stack:
        engines = [stack.enter_context(method.engine(llm, **sizes)) for method in methods]
        return step_seconds(
            engines, contexts, tokens, BUDGET, counts=counts, rounds=rounds,
            advanced=lambda done, total: report("timing decode steps, percent", 100 * done // total, 100),
        )  # fmt: skip


def contexts_up_to(longest: int, llm: LLM, counts: Sequence[int]) -> tuple[int, ...]:
    """An eighth, a quarter, a half of a context, and all of it. Raises UsageError where the model cannot go so far."""
    room = llm.engine.limits.max_model_len - MANY * STEPS * len(counts)
    if longest > room:
        raise UsageError(f"steps at {longest} positions go past what this model takes: give {room} at most")
    return tuple(longest // part for part in (8, 4, 2, 1))


def steps(
    llm: LLM, model: str, methods: Sequence[Method], longest: int, counts: Sequence[int], report: Progress
) -> dict[str, Any]:
    """Time methods, f16 among them, at contexts up to `longest`: the shape that programs read."""
    contexts = contexts_up_to(longest, llm, counts)
    found = timed(llm, methods, contexts, counts, texts(llm, contexts), report, MANY)
    floor = found[methods.index(FLOOR)]
    rows = [
        {"codec": method.codec, "policy": method.policy, "sequences": count, **figures(contexts, turns, base)}
        for method, of_counts in zip(methods, found, strict=True)
        for count, turns, base in zip(counts, of_counts, floor, strict=True)
    ]
    return {
        "model": model, "weights": llm.model.weights, "threads": llm.backend.threads,
        "page_size": llm.config.page_size, "kv_cache_skip_layers": llm.config.kv_cache_skip_layers,
        "sequences": list(counts), "contexts": list(contexts), "speed": rows,
    }  # fmt: skip


def steps_lines(found: dict[str, Any]) -> Iterator[str]:
    """A table for each number of sequences."""
    width = 2 + max(len("method"), *(len(_name(row)) for row in found["speed"]))
    for count in found["sequences"]:
        titles = [f"at {context:,}" for context in found["contexts"]] + ["intercept", "+us/1k", "of f16's"]
        yield f"{count} sequence{'s' * (count > 1)}, ms a step"
        yield f"{'method':<{width}}" + "".join(f"{title:>11}" for title in titles) + f"{'95% interval':>16}"
        for row in (row for row in found["speed"] if row["sequences"] == count):
            cells = [f"{step['seconds'] * 1e3:.2f}" for step in row["steps"]]
            cells += [f"{row['step_ms_intercept']:.2f}", f"{row['step_us_per_1k_tokens']:.0f}"]
            cells.append(f"{row['slope_to_f16']:.3f}")
            sure = "[{:.3f}, {:.3f}]".format(*row["slope_to_f16_interval"])
            yield f"{_name(row):<{width}}" + "".join(f"{cell:>11}" for cell in cells) + f"{sure:>16}"
    yield (
        f"{found['model']}, {found['weights']} weights, {found['threads']} threads, pages of {found['page_size']}; a "
        "step = intercept + slope x context of each sequence; sequences share no page; all in turns, medians of ratios "
        "to f16 within a turn"
    )


def _name(row: dict[str, Any]) -> str:
    return Method(row["codec"], row["policy"]).name
