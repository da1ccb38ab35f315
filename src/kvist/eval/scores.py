"""What is kept of one document read under one method; as JSON and back without losing a bit."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SURE = 0.5
"""Nats that the reference's likeliest token is ahead of its second where it counts as sure."""

FIELDS = {"own": np.float32, "reference": np.float32, "divergence": np.float32, "same": np.bool_, "sure": np.bool_}


@dataclass(frozen=True, slots=True)
class Scores:
    """Arrays of (positions,), as `kvist.divergence.Distances` has them; sure: the reference's margin is above `SURE`.

    live_bytes: of the pages that the document held at its end. first: position of the first prediction that is
    measured; those before it see all there is.
    """

    own: npt.NDArray[np.float32]
    reference: npt.NDArray[np.float32]
    divergence: npt.NDArray[np.float32]
    same: npt.NDArray[np.bool_]
    sure: npt.NDArray[np.bool_]
    live_bytes: int
    first: int = 0

    @property
    def positions(self) -> int:
        """How many predictions."""
        return len(self.own)

    def as_json(self) -> dict[str, Any]:
        """For a file of results: each array as its bytes in base64."""
        packed = {name: base64.b64encode(getattr(self, name).tobytes()).decode() for name in FIELDS}
        return {"live_bytes": self.live_bytes, "first": self.first, **packed}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Scores:
        """What `as_json` told."""
        arrays: dict[str, Any] = {
            name: np.frombuffer(base64.b64decode(found[name]), kind) for name, kind in FIELDS.items()
        }
        return cls(**arrays, live_bytes=found["live_bytes"], first=found["first"])
