"""Write tests/fixtures/transformers.npz: logits and greedy tokens of the tiny models as transformers computes them.

Run it in an environment with ``torch==2.13.0`` and transformers: python scripts/make_parity_fixtures.py
A prompt after which two tokens are nearly as likely is replaced: another order of summation could choose the other one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny import MODELS, Tiny, digest, write_folder

TARGET = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "transformers.npz"
PROMPTS = {"one": (1, [0]), "page": (33, [0, 15, 16, 32]), "tiles": (130, [63, 64, 127, 129])}  # tokens; positions kept
GREEDY = 64
MARGIN = 2e-3  # between the two largest logits, where parity allows 1e-4
VARIETY = 8  # different tokens among the greedy ones, at least


@torch.no_grad()
def continued(model: torch.nn.Module, ids: list[int]) -> tuple[list[int], float]:
    """Greedy tokens, and the smallest distance between the two largest logits on the way."""
    tokens, margin = list(ids), float("inf")
    for _ in range(GREEDY):
        last = model(torch.tensor([tokens])).logits[0, -1].numpy()
        second, first = np.sort(last)[-2:]
        margin = min(margin, float(first - second))
        tokens.append(int(last.argmax()))
    return tokens[len(ids) :], margin


@torch.no_grad()
def fixtures(tiny: Tiny, model: torch.nn.Module) -> dict[str, np.ndarray]:
    kept = {f"{tiny.name}/digest": np.array(digest(tiny))}
    for name, (length, positions) in PROMPTS.items():
        for seed in range(100):
            ids = np.random.RandomState(seed).randint(2, tiny.vocab, length).tolist()
            new, margin = ([], float("inf")) if tiny.by_length else continued(model, ids)
            if tiny.by_length or (margin > MARGIN and len(set(new)) > VARIETY):
                break
        else:
            raise SystemExit(f"{tiny.name}: no prompt of {length} tokens will do")
        logits = model(torch.tensor([ids])).logits[0].numpy()
        print(
            f"{tiny.name:18} {name:5} seed {seed:2} logits to {abs(logits).max():.1f}, margin {margin:.4f}, {len(set(new))} kinds"
        )
        at = f"{tiny.name}/{name}"
        kept[f"{at}/prompt"], kept[f"{at}/greedy"] = np.array(ids, np.int16), np.array(new, np.int16)
        kept[f"{at}/positions"], kept[f"{at}/logits"] = np.array(positions, np.int16), logits[positions]
    return kept


def main() -> None:
    kept = {"versions": np.array([torch.__version__, transformers.__version__])}
    for tiny in MODELS.values():
        with tempfile.TemporaryDirectory() as folder:
            write_folder(tiny, Path(folder))
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        kept |= fixtures(tiny, model)
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(TARGET, **kept)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
