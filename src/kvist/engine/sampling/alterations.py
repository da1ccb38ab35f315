"""What changes a row of logits before a token is chosen: end tokens held back, biases, penalties; in that order.

Each is a few numbers of the row, which a chooser changes in a copy of it (see `kernels.choosing`). Penalties see the
tokens before the row's position, those of drafts that stand before it included; a row behind a wrong draft is never
used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from kvist.engine.params import SamplingParams
from kvist.kernels.choosing import Changes


class Alterations:
    """One sequence's: its parameters, and the tokens it has so far.

    ends: token ids that would end it, held back until there are min_tokens. generated: tokens of the answer so far.

    ::

        ids     end tokens | biased ones | tokens of the prompt (if repetition counts) and the answer | room
        values           0 | biases      | times in the answer
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int], ends: frozenset[int]) -> None:
        self._params, self._prompt, self._all_ends = params, prompt, ends
        self.generated = 0
        bias = params.logit_bias or {}
        seen = dict.fromkeys(prompt) if params.repetition_penalty != 1.0 else {}
        self._held, self._biased = len(ends), len(bias)
        first = self._held + self._biased
        self._slots = {token: first + i for i, token in enumerate(seen)}
        self._ids = np.array([*sorted(ends), *bias, *seen], np.int64)
        self._values = np.zeros(len(self._ids), np.float32)
        self._values[self._held : first] = list(bias.values())

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
        slot = self._slots.setdefault(token, self._held + self._biased + len(self._slots))
        if slot == len(self._ids):
            room = np.zeros(16, np.int64)
            self._ids, self._values = (
                np.concatenate([old, room.astype(old.dtype)]) for old in (self._ids, self._values)
            )
        self._ids[slot] = token
        self._values[slot] += 1

    def changes(self, ahead: Sequence[int]) -> Changes:
        """What changes the next row; ahead: drafts that stand between the answer so far and it."""
        params, count = self._params, self._held + self._biased + len(self._slots)
        held = self._held if self.generated + len(ahead) < params.min_tokens else 0
        ids, values = self._ids[self._held - held : count], self._values[self._held - held : count]
        if ahead and params.penalizes:
            ids, values = self._with(ahead, ids, values, count - len(ids))
        return Changes(
            ids,
            values,
            held,
            self._biased,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )

    def _with(
        self, ahead: Sequence[int], ids: np.ndarray, values: np.ndarray, skipped: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and values as they are once `ahead` is part of the answer; the first so many are not among them."""
        new = [token for token in dict.fromkeys(ahead) if token not in self._slots]
        places = {token: len(ids) + i for i, token in enumerate(new)}
        ids = np.concatenate([ids, np.array(new, np.int64)])
        values = np.concatenate([values, np.zeros(len(new), np.float32)])
        for token in ahead:
            values[self._slots[token] - skipped if token in self._slots else places[token]] += 1
        return ids, values
