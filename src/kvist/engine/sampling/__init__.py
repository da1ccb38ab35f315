"""From logits to a token: a pure function of (logits, parameters, seed, position, the sequence's own tokens).

::

    logits (vocab,) ── alterations ──► bias, penalties, end tokens held back      only where a request asks for them
                        │
                        ├─ greedy: the largest, the first of equals               the compiled loop knows it already
                        │
                        └─ weights = exp((logit - largest) / temperature)         float32, each by itself
                             └─ filters: top_k, top_p, min_p, typical_p           each over what the one before it left
                                  └─ draws: one number of (seed, position) picks one of what is left

No batch, no history but the sequence's own, no order of requests. So a request gives the same tokens alone, in a
batch, after a preemption, and where its tokens were drafted.

A vocabulary of 50,000 is read two or three times for each row and never sorted: `blocks` cuts it into columns of 64
tokens, and whoever looks for the likeliest tokens looks into the few columns that can hold one. Rows are taken one
after the other, each with operations over its whole vocabulary: a row of 192 KB stays in the processor's cache
between its passes, which the 12 MB of 64 rows do not (drawing for all rows in one go was slower).
"""
