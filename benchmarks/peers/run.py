"""The same work on kvist and its peers, interleaved: a table, a picture and the numbers behind them.

python benchmarks/peers/run.py [--repeats 3] [--only kvist,openvino] [--rows decode_1,prefill_512] [--quick]

Run it with a Python that has kvist's dependencies (the checkout's .venv). README.md beside this file says what is
measured and how.
"""

from __future__ import annotations

import sys

from runner.main import main

if __name__ == "__main__":
    sys.exit(main())
