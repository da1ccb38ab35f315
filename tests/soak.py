"""Simulate with fresh seeds for as long as wanted; stop at the first answer that is wrong.

python tests/soak.py [--seconds 600] [--seed N] [--requests 150]

Even seeds run the model that hashes what it reads, odd ones the tiny real model. --seed runs that one alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import tiny
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model
from stress.hashing import VOCAB, hashing_engine
from stress.real import real_engines
from stress.simulation import Simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--requests", type=int, default=150)
    asked = parser.parse_args()
    backend = CpuBackend(1)
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(
            tiny.write_folder(replace(tiny.MODELS["llama"], positions=512), Path(folder) / "tiny"), backend
        )
        real = real_engines(model, backend)
        begin, compared = time.monotonic(), 0
        seed = int(time.time()) if asked.seed is None else asked.seed
        while True:
            make, vocab = (real, model.config.vocab_size) if seed % 2 else (hashing_engine, VOCAB)
            one = Simulation(seed, make, vocab, asked.requests)
            preemptions = one.run().scheduler.preemptions
            compared += one.compared
            print(f"seed {seed}: {one.steps} steps, {one.compared} answers, {preemptions} preemptions", flush=True)
            seed += 1
            if asked.seed is not None or time.monotonic() - begin > asked.seconds:
                break
    backend.close()
    print(f"ok: {compared} answers in {time.monotonic() - begin:.0f} s, each bit for bit its lone one")


if __name__ == "__main__":
    main()
