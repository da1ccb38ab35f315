"""--weights as a user meets it."""

from __future__ import annotations

import pytest

from tiny import MODELS, write_folder, write_gguf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The same tiny model as a folder of floats and as a quantised file."""
    folder = tmp_path_factory.mktemp("weights")
    return (
        str(write_folder(MODELS["llama"], folder / "llama")),
        str(write_gguf(MODELS["llama"], folder / "llama.gguf", "Q4_1")),
    )


def test_a_quantised_file_runs_as_it_is_and_says_the_same_unpacked(cli, models):
    flags = ["--ignore-eos", "--max-tokens", "20", "--temperature", "0.7", "--seed", "5"]
    said = [cli("run", models[1], "the hen", *flags, *given) for given in ([], ["--weights", "packed"])]
    unpacked = cli("run", models[1], "the hen", *flags, "--weights", "f32", "--kv-cache-dtype", "f16")
    assert {done.returncode for done in (*said, unpacked)} == {0}
    assert said[0].stdout == said[1].stdout == unpacked.stdout != ""


def test_a_float_model_runs_as_int8(cli, models):
    done = cli("run", models[0], "the hen", "--weights", "int8", "--max-tokens", "5")
    assert done.returncode == 0 and done.stdout


def test_types_that_do_not_fit_the_file(refused, models):
    says = refused(2, "run", models[0], "the hen", "--weights", "packed")
    assert "has f32: give int8 to quantise it, or auto" in says
    says = refused(2, "run", models[1], "the hen", "--weights", "int8")
    assert "is quantised already (q4_1): give packed" in says
    assert "did you mean int8" in refused(2, "run", models[0], "the hen", "--weights", "int9")
