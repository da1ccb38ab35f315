"""The benchmark of families: every family has a model of like size, and the table says what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tiny_weights
from kvist.models.families import FAMILIES
from kvist.models.read_config import config_from_hf
from tiny import MODELS, config

FOLDER = Path(__file__).parents[2] / "benchmarks" / "families"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """run.py, under a name that no other benchmark's has."""
    sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location("run_families", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_family_has_a_model_of_like_size(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape_only(self: Any, name: str, *shape: int, scale: float, mean: float = 0.0) -> None:
        self.made[name] = np.broadcast_to(np.float32(0), shape)

    monkeypatch.setattr(tiny_weights.Maker, "numbers", shape_only)
    found = set()
    for name, shape in program.SHAPES.items():
        family, read = config_from_hf(config(shape), shape.vocab)
        assert (family.name, name) == (name, shape.name)
        assert read.max_positions >= 2049
        assert 100e6 < sum(array.size for array in tiny_weights.tensors(shape).values()) < 170e6
        found.add(family.name)
    assert found == {family.name for family in FAMILIES}


def test_the_table_marks_what_is_clearly_below_the_reference(program: ModuleType) -> None:
    def row(family: str, *shares: float) -> dict[str, Any]:
        results = [
            {"name": name, "roofline_share": share, "bound": "fma"}
            for name, share in zip(program.WORKLOADS, shares, strict=True)
        ]
        return {"family": family, "parameters": 134_515_008, "results": results}

    lines = program.table([row("llama", 0.8, 0.6, 0.6, 0.6), row("gpt2", 0.77, 0.56, 0.7, 0.1)]).splitlines()
    assert lines[0].split() == ["family", "parameters", *program.WORKLOADS]
    assert lines[1].split() == ["llama", "135", "M", "80%", "fma", "60%", "fma", "60%", "fma", "60%", "fma"]
    assert lines[2].split() == ["gpt2", "135", "M", "77%", "fma", "56%", "fma", "<", "70%", "fma", "10%", "fma", "<"]
    assert "<" not in program.table([row("gpt2", 0.77, 0.56, 0.7, 0.1)])  # nothing to compare with


def test_it_writes_measures_and_profiles(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "SHAPES", {"qwen3": replace(MODELS["qwen3"], positions=2560)})
    out = tmp_path / "found.json"
    program.main(["qwen3", "--repeats", "1", "--profile", "--out", str(out), "--keep", str(tmp_path)])
    (row,) = json.loads(out.read_text())["families"]
    assert [result["name"] for result in row["results"]] == list(program.WORKLOADS)
    assert all(result["roofline_share"] > 0 and result["bound"] in ("read", "fma") for result in row["results"])
    assert [one["name"] for one in row["profiles"]] == list(program.WORKLOADS)
    assert row["parameters"] == sum(array.size for array in tiny_weights.tensors(MODELS["qwen3"]).values())
    assert (tmp_path / "qwen3" / "model.safetensors").stat().st_size == pytest.approx(2 * row["parameters"], rel=0.05)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "qwen3: decode_64" in printed.err and "all operations" in printed.err
    with pytest.raises(SystemExit):
        program.main(["llama"])
    assert "known are qwen3" in capsys.readouterr().err
