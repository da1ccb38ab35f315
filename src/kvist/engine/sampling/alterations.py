"""What changes a row of logits before a token is chosen: end tokens held back, biases, penalties; in that order.

Each is a few numbers of the row, which a chooser changes in a copy of it (see `kernels.choosing`). Penalties see the tokens before the row's position, those
of drafts that stand before it included; a row behind a wrong draft is never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from kvist.engine.params import SamplingParams
from kvist.kernels.choosing import Changes


class Alterations:
    """One sequence's: its parameters, and the tokens it has so far.

    ends: token ids that would end it, held back until there are min_tokens. generated: tokens of the answer so far.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int], ends: frozenset[int]) -> None:
        self._params, self._prompt, self._all_ends = params, prompt, ends
        self.generated = 0
        self._ends = np.array(sorted(ends), np.int64)
        bias = params.logit_bias or {}
        self._biased = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float32)
        seen = dict.fromkeys(prompt) if params.repetition_penalty != 1.0 else {}
        self._slots = {token: slot for slot, token in enumerate(seen)}
        self._seen = np.fromiter(seen, np.int64, len(seen))  # room may be left behind the slots that are used
        self._times = np.zeros(len(seen), np.float32)  # in the answer

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Whether parameters change any row."""
        return params.penalizes or bool(params.logit_bias) or params.min_tokens > 0

    def anew(self) -> Alterations:
        """The same for another branch of the prompt."""
        return Alterations(self._params, self._prompt, self._all_ends)

    def add(self, token: int) -> None:
        """Take note of a token of the answer."""
        self.generated += 1
        if not self._params.penalizes:
            return
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._seen):
            room = np.zeros(slot + 16, np.int64)
            self._seen, self._times = (
                np.concatenate([old, room.astype(old.dtype)]) for old in (self._seen, self._times)
            )
        self._seen[slot] = token
        self._times[slot] += 1

    def changes(self, ahead: Sequence[int]) -> Changes:
        """What changes the next row; ahead: drafts that stand between the answer so far and it."""
        params, count = self._params, len(self._slots)
        held = self._ends if self.generated + len(ahead) < params.min_tokens else self._ends[:0]
        seen, times = self._with(ahead) if ahead and params.penalizes else (self._seen[:count], self._times[:count])
        return Changes(
            held, self._biased, self._bias, seen, times,
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty,
        )  # fmt: skip

    def _with(self, ahead: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and times as they are once `ahead` is part of the answer."""
        count = len(self._slots)
        new = [token for token in dict.fromkeys(ahead) if token not in self._slots]
        seen = np.concatenate([self._seen[:count], np.array(new, np.int64)])
        times = np.concatenate([self._times[:count], np.zeros(len(new), np.float32)])
        places = {token: count + i for i, token in enumerate(new)}
        for token in ahead:
            times[self._slots.get(token, places.get(token, 0))] += 1
        return seen, times
