"""From logits to a token: a pure function of (logits, parameters, seed, position, the sequence's own tokens).

::

    logits (vocab,) ── alterations ──► bias, penalties, end tokens held back      only where a request asks for them
                        │
                        ├─ greedy: the largest, the first of equals               the compiled loop knows it already
                        │
                        └─ weights = exp((logit - largest) / temperature)         each by itself; their sums are exact
                             └─ filters: top_k, top_p, min_p, typical_p           each over what the one before it left
                                  └─ draws: one number of (seed, position) picks one of what is left

No batch, no history but the sequence's own, no order of requests. So a request gives the same tokens alone, in a
batch, after a preemption, and where its tokens were drafted.

Here is what a request asks for; what a token is by definition stands in `kernels.choosing`, and a chooser takes
all rows of a step at once. A vocabulary of 50,000 is never sorted: a filter is a search for the weight where a sum is
reached (`kernels.cpu.select`).
"""
