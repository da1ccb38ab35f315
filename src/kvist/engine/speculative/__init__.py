"""Speculative decoding: somebody cheap guesses tokens, one forward pass checks them all, the text stays the same.

A step of one sequence reads every weight for a single row of numbers; a few more rows cost little. So a *proposer*
drafts tokens d1 .. dk behind the last token t, and the model runs the rows of t, d1, ..., dk at once: row i's logits
are those of the sequence that ends with di, if d1 .. di are right.

Why nothing changes. Two facts make it exact rather than likely:

1. A row's logits do not depend on the rows beside it, to the bit (the exactness contract; `kvist verify`).
2. A token is a pure function of (logits, parameters, seed, position), greedy or drawn (`engine.sampler`).

So verification chooses a token from each row in turn, as if it had been computed alone. While the choice equals the
draft the next row is valid too; the first choice that differs is simply the next token, and the rows behind it are
dropped. The classical scheme (Leviathan et al. 2023, Chen et al. 2023) must accept a draft with probability
min(1, p / q) and draw from what is left of p otherwise, to keep the *distribution*; here the draws themselves are
kept, so the *text* is identical to the text without drafts, and with it every distribution. Nothing about drafting,
its lengths or its timing can be seen in an answer.

Keys and values of wrong drafts never count: `Runner.accept` commits the drafts that were right after the check, so no
page is sealed or published with a guess in it, and rolls the table back to what is committed.

Proposers: `ngram` (prompt lookup, Saxena 2023): what followed when these tokens last appeared, in prompt or answer.
`draft`: a smaller model of the same vocabulary. How many drafts are worth their rows is decided by `plan`.
"""
