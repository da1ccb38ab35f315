"""The same weights in every engine's format, converted once from one GGUF file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from runner.environments import Environments
from runner.failure import PeerError, run_logged
from runner.say import say

ADAPTERS = Path(__file__).parent.parent / "adapters"


class Weights:
    """Converted weights, below `folder`; each kind is made when it is first asked for.

    gguf: the file itself. hf: float32 safetensors, which hold every value of the file exactly; engines round them to
    their own type when they load. openvino: fp16, exported from hf. bf16, q8_0: GGUF files requantised by llama.cpp.
    """

    def __init__(self, source: Path, folder: Path, environments: Environments, logs: Path) -> None:
        self._source, self._folder, self._environments, self._logs = source, folder / source.stem, environments, logs
        self._failed: dict[str, PeerError] = {}
        self._makers: dict[str, Callable[[Path], list[str | Path]]] = {
            "hf": self._hf,
            "openvino": self._openvino,
            "bf16": lambda target: self._llamacpp("BF16", target),
            "q8_0": lambda target: self._llamacpp("Q8_0", target),
        }

    def path(self, kind: str) -> Path:
        """Where weights of this kind are; PeerError if they cannot be made."""
        if kind == "gguf":
            return self._source
        if kind in self._failed:
            raise self._failed[kind]
        target = self._folder / (f"{kind}.gguf" if kind in ("bf16", "q8_0") else kind)
        if not target.exists():
            partial = target.with_name(f"partial-{target.name}")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                command = self._makers[kind](partial)
                say(f"converting weights: {kind}")
                run_logged(command, self._logs / f"convert-{kind}.log", f"converting to {kind}")
            except PeerError as error:
                self._failed[kind] = error
                raise
            partial.replace(target)  # only whole weights have the name
        return target

    def _hf(self, target: Path) -> list[str | Path]:
        python = self._environments.python("transformers")
        return [python, ADAPTERS / "convert_transformers.py", self._source, target]

    def _openvino(self, target: Path) -> list[str | Path]:
        source = self.path("hf")
        tool = self._environments.python("openvino").parent / "optimum-cli"
        task = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
        return [tool, "export", "openvino", "--model", source, *task, target]

    def _llamacpp(self, kind: str, target: Path) -> list[str | Path]:
        python = self._environments.python("llamacpp")
        return [python, ADAPTERS / "convert_llamacpp.py", kind, self._source, target]
