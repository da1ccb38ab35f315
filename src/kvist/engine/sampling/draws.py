"""Random numbers as functions: of a seed and a position, and of a seed and a branch."""

from __future__ import annotations

from kvist.errors import InternalError

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for one position of one seed: the SplitMix64 finaliser (Steele et al.

    2014), applied twice, as 53 bits.
    """
    state = _mix(_mix(seed & _MASK) + (position * _ODD & _MASK))
    return (state >> 11) * 2.0**-53


def branch_seed(seed: int, branch: int) -> int:
    """The seed of one branch of a request: the request's own for the first, another for each other."""
    if branch < 0:
        raise InternalError(f"branch {branch}")
    return seed if branch == 0 else _mix(_mix(seed & _MASK) ^ (branch * _ODD & _MASK))


def _mix(state: int) -> int:
    state = (state + _ODD) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
