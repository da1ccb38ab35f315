"""Scenarios of branches: answers to one prompt that share its pages, against each by itself."""

from __future__ import annotations

from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.engine.sampling.draws import branch_seed
from kvist.errors import InternalError
from kvist.kernels.program import Floats
from kvist.verify.record import Bench, Difference, Prompt, Record

BRANCHES = 4
SEED = 11


def branches(bench: Bench, expected: Record) -> Difference:
    """Four answers to each prompt in shared pages, drawn with seeds of their own, against each of them alone.

    A second time the prompt's pages are found, and copied on write at another place.
    """
    difference = Difference()
    with bench.engine() as engine, bench.engine(enable_prefix_caching=False) as fresh:
        for prompt in bench.few:
            before = engine.manager.counters.pages_shared
            alone = [_rows(fresh, prompt, bench.generated, 1, branch_seed(SEED, i))[0] for i in range(BRANCHES)]
            for _ in range(2):
                for own, rows in zip(alone, _rows(engine, prompt, bench.generated, BRANCHES, SEED), strict=True):
                    for one, other in zip(own, rows, strict=True):
                        difference.add(one, other)
            shared = len(prompt) // bench.config.page_size
            if engine.manager.counters.pages_shared - before < 2 * shared * (BRANCHES - 1):
                raise InternalError("the scenario was to share pages and did not")
    return difference


def _rows(engine: Engine, prompt: Prompt, generated: int, count: int, seed: int) -> list[list[Floats]]:
    """Generate branches of a prompt together; the logits that each one's tokens were chosen from, (1, vocab) each."""
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=generated, ignore_eos=True, n=count)
    seen: list[Floats] = []
    rows: list[list[Floats]] = [[] for _ in range(count)]
    engine.observe = lambda request, position, logits: seen.append(logits[None].copy())
    try:
        engine.submit(prompt, params)
        while engine.has_work:
            seen.clear()
            for output, logits in zip(engine.step(), seen, strict=True):  # one after the other, as they were chosen
                rows[output.index].append(logits)
    finally:
        engine.observe = None
    return rows
