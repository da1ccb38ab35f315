"""TOVA (Oren et al. 2024): the attention of the newest query."""

from __future__ import annotations

from kvist.cache.score.base import Attended

SCORE = Attended(1)
