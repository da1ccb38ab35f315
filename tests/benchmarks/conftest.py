"""The benchmark's modules are a program's, not a package's: their folders go on the path."""

from __future__ import annotations

import sys
from pathlib import Path

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
sys.path[:0] = [str(PEERS), str(PEERS / "adapters")]
