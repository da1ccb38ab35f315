"""Speculation over an engine's steps: how much to draft, for whom, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Tokens

from kvist.engine.sequence import Sequence
from kvist.engine.speculative.plan import Odds, StepCost, choose
from kvist.engine.speculative.proposer import Proposer, agreed


class Speculator:
    """Asks a proposer and learns from what came of its proposals.

    limit: drafts for a sequence in one step at most. adaptive: draft as much as pays (see `plan`), else always as much
    as there is. A proposal of a free proposer that does not pay is not run, but still compared with what was chosen:
    so a sequence that begins to repeat itself is found out without a single row.
    """

    def __init__(self, proposer: Proposer, limit: int, adaptive: bool = True) -> None:
        self.proposer, self.limit, self.adaptive = proposer, limit, adaptive
        self.cost = StepCost()
        self.verified_steps = 0  # of sequences: times that drafts of one were run
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._odds: dict[Sequence, Odds] = {}
        self._proposals: dict[Sequence, list[int]] = {}  # of the step that is under way, whether they are run or not

    def propose(self, schedule: Mapping[Sequence, int], room: int) -> dict[Sequence, list[int]]:
        """Drafts for the sequences of a schedule that only wait for their next token; `room`: rows that may be added.

        No draft goes beyond the sequence's limit.
        """
        depths: dict[Sequence, int] = {}
        self._proposals = {}
        for sequence in schedule:
            depth = min(self.limit, sequence.limit - len(sequence.tokens) - 1)
            if depth > 0 and room > 0 and sequence.uncomputed == 1 and sequence.draftable:
                depths[sequence] = depth
                if sequence not in self._odds:
                    self._odds[sequence] = Odds()
        if not depths:
            return {}
        if self.proposer.free:
            self._proposals = self.proposer.propose(depths)
            depths = {sequence: len(proposal) for sequence, proposal in self._proposals.items()}
            plan = self._plan(schedule, depths, room)
            return {sequence: self._proposals[sequence][:count] for sequence, count in plan.items()}
        plan = self._plan(schedule, depths, room)
        self._proposals = self.proposer.propose(plan) if plan else {}
        return dict(self._proposals)

    def settle(self, sequence: Sequence, drafted: int, chosen: Tokens[int]) -> None:
        """Learn from a step of a sequence: so many drafts were run, these tokens were chosen."""
        proposal = self._proposals.pop(sequence, None)
        if proposal is not None:
            right = agreed(proposal, chosen)
            self._odds[sequence].note(right, right < min(len(proposal), len(chosen)))
        if drafted:
            self.verified_steps += 1
            self.drafted_tokens += drafted
            self.accepted_tokens += len(chosen) - 1

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that ended."""
        self._odds.pop(sequence, None)
        self._proposals.pop(sequence, None)
        self.proposer.forget(sequence)

    def close(self) -> None:
        """Give the proposer's memory back."""
        self.proposer.close()

    def _plan(self, schedule: Mapping[Sequence, int], depths: Mapping[Sequence, int], room: int) -> dict[Sequence, int]:
        """How many drafts to run, by sequence."""
        if not depths:
            return {}
        if not self.adaptive:
            plan = {}
            for sequence, depth in depths.items():
                if count := min(depth, room):
                    plan[sequence] = count
                    room -= count
            return plan
        rows = sum(schedule.values())
        plan = choose(rows, depths, self._odds, self.cost, self.proposer.seconds, room)
        if not self.proposer.free:  # odds of a sequence that gets no drafts stay as they are: try again now and then
            room -= sum(plan.values())
            due = [sequence for sequence in depths if sequence not in plan and self._odds[sequence].due()]
            plan |= dict.fromkeys(due[: max(room, 0)], 1)
        return plan
