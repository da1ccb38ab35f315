"""H2O (Zhang et al. 2023): the attention of all queries of the prompt, accumulated."""

from __future__ import annotations

from kvist.cache.score.base import Attended

SCORE = Attended(None)
