"""What changes a row of logits before a token is chosen: end tokens held back, biases, penalties; in that order.

Each is a few numbers of the row: all others keep their bits. Penalties see the tokens before the row's position, those
of drafts that stand before it included; a row behind a wrong draft is never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from kvist.engine.params import SamplingParams
from kvist.kernels.program import Floats


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

    def apply(self, logits: Floats, ahead: Sequence[int], out: Floats) -> Floats:
        """The altered row in `out`; ahead: drafts that stand between the answer so far and the row."""
        np.copyto(out, logits)
        if self.generated + len(ahead) < self._params.min_tokens:
            out[self._ends] = -np.inf
        out[self._biased] += self._bias
        if self._params.penalizes:
            self._penalize(out, ahead)
        return out

    def _penalize(self, out: Floats, ahead: Sequence[int]) -> None:
        count = len(self._slots)
        seen, times = self._seen[:count], self._times[:count]
        if ahead:
            seen, times = self._with(ahead)
        params, values = self._params, out[seen]
        if params.repetition_penalty != 1.0:
            factor = np.float32(params.repetition_penalty)
            values = np.where(values > 0, values / factor, values * factor)
        values -= np.float32(params.frequency_penalty) * times
        values -= np.float32(params.presence_penalty) * (times > 0)
        out[seen] = values

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
