"""Write the tests' tiny random models: python scripts/make_tiny_models.py FOLDER [NAME ...]

Each becomes FOLDER/NAME (a Hugging Face folder) and FOLDER/NAME-F32.gguf, NAME-F16.gguf and, where rows are whole
blocks, NAME-Q8_0.gguf.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny import MODELS, write_folder, write_gguf


def main(folder: str, *names: str) -> None:
    unknown = set(names) - MODELS.keys()
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(MODELS)}")
    for name in names or MODELS:
        tiny, target = MODELS[name], Path(folder)
        print(write_folder(tiny, target / name))
        kinds = ("F32", "F16", "Q8_0") if tiny.hidden % 32 == 0 else ("F32", "F16")
        for kind in kinds:
            print(write_gguf(tiny, target / f"{name}-{kind}.gguf", kind))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
