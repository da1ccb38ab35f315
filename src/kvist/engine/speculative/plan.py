"""How many drafts are worth their rows: the odds of each sequence, the cost of a row, and the best trade of the two.

A draft at depth j is right with probability chance^j, and gives one token then. It costs a row, and a row costs what
steps have taken lately: nearly nothing where a step only waits for memory, its full price in a full batch. The plan
takes the drafts with the best odds, of all sequences, as long as tokens per second rise. Timing and odds decide how
much is drafted, never what is answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvist.engine.sequence import Sequence

KEEP_ODDS = 0.8  # of older proofs, at each new one: a sequence is known by its last few proposals
KEEP_COST = 0.97  # of older steps, at each new one
FREE_ROWS = 6  # until steps tell: a step costs as much as that many rows besides its own
WORTH = 1.03  # drafting must promise so many times the rate without it: odds and costs are estimates
LEAST = 0.02  # odds below which a draft is not looked at
FIRST_PAUSE, LONGEST_PAUSE = 8, 512  # steps without drafts before another try, where a try costs something


@dataclass(slots=True)
class Odds:
    """How often a sequence's drafts were right lately, and how long it has not been tried.

    It begins undecided: one right of two.
    """

    right: float = 1.0
    tried: float = 2.0
    idle: int = 0
    pause: int = FIRST_PAUSE

    @property
    def chance(self) -> float:
        """Probability that a draft is right, if those before it are."""
        return self.right / self.tried

    def note(self, right: int, wrong: bool) -> None:
        """Take in one proposal: so many right, then a wrong one or the end of what is known."""
        self.right = KEEP_ODDS * self.right + right
        self.tried = KEEP_ODDS * self.tried + right + wrong
        self.idle = 0
        if right:
            self.pause = 1
        elif wrong:
            self.pause = min(max(FIRST_PAUSE, 2 * self.pause), LONGEST_PAUSE)

    def due(self) -> bool:
        """Count a step without drafts; whether it is time for another try."""
        self.idle += 1
        return self.idle >= self.pause


class StepCost:
    """Seconds of a step as a straight line of its rows, fitted to recent steps (least squares, older ones fade).

    The less their rows vary, the more the slope is that of FREE_ROWS: timings are noisy, and steps of one size tell
    nothing about a row's price (ridge regression, with that slope in the place of zero).
    """

    def __init__(self) -> None:
        self._rows = self._seconds = self._squares = self._products = self._weight = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """Take in a step. One that was far too slow (the machine was elsewhere) counts as three times its estimate."""
        if self._weight:
            seconds = min(seconds, 3 * self.seconds(rows))
        self._weight = KEEP_COST * self._weight + 1
        self._rows = KEEP_COST * self._rows + rows
        self._seconds = KEEP_COST * self._seconds + seconds
        self._squares = KEEP_COST * self._squares + rows * rows
        self._products = KEEP_COST * self._products + rows * seconds

    def seconds(self, rows: float) -> float:
        """Estimate for a step; before any was seen, in units of a row."""
        mean, slope, rows_mean = self.line()
        return max(mean + slope * (rows - rows_mean), slope)

    def line(self) -> tuple[float, float, float]:
        """Mean seconds, seconds of a row, mean rows."""
        if not self._weight:
            return FREE_ROWS + 1.0, 1.0, 1.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        covariance = self._products / self._weight - rows * seconds
        prior, ridge = seconds / (rows + FREE_ROWS), 1 + (rows / 4) ** 2
        return seconds, max((covariance + ridge * prior) / (variance + ridge), 0.1 * prior), rows


def choose(
    rows: int, depths: Mapping[Sequence, int], odds: Mapping[Sequence, Odds], cost: StepCost, ahead: float, room: int
) -> dict[Sequence, int]:
    """How many drafts to run for each sequence, so that tokens per second are highest; sequences without are left out.

    rows: of the step without drafts, each worth a token. depths: drafts there are, or could be. ahead: seconds that
    one more depth of drafts costs the proposer. room: rows that may be added.
    """
    offers: list[tuple[float, int, Sequence]] = []
    for sequence, depth in depths.items():
        chance = gain = odds[sequence].chance
        for j in range(1, depth + 1):
            if gain < LEAST:
                break
            offers.append((gain, j, sequence))
            gain *= chance
    offers.sort(key=_gain, reverse=True)  # stable: of equal gains the less deep stays first
    mean, slope, rows_mean = cost.line()
    seconds = max(mean + slope * (rows - rows_mean), slope)
    tokens, deepest, best, taken = float(rows), 0, WORTH * rows / seconds, 0
    for i, (gain, j, _) in enumerate(offers[:room], 1):
        tokens += gain
        seconds += slope
        if j > deepest:
            deepest, seconds = j, seconds + ahead
        if tokens > best * seconds:
            best, taken = tokens / seconds, i
    plan: dict[Sequence, int] = {}
    for _, _, sequence in offers[:taken]:
        plan[sequence] = plan.get(sequence, 0) + 1
    return plan


def _gain(offer: tuple[float, int, Sequence]) -> float:
    return offer[0]
