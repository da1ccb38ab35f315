"""The public surface: what `kvist` gives, how light it is, that the README and the wheel are true."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import kvist
import serving
from tiny import MODELS, write_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVER = "http://127.0.0.1:8000"


def python(code: str, **options: object) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_public_names_are_these():
    assert kvist.__all__ == [
        "LLM",
        "BeamSearchOutput",
        "BeamSearchParams",
        "BeamSearchSequence",
        "CompletionOutput",
        "EngineConfig",
        "FirstDifference",
        "KvistError",
        "Logprob",
        "Request",
        "RequestMetrics",
        "RequestOutput",
        "ReuseReport",
        "SamplingParams",
        "Session",
        "StructuredOutputs",
        "TextChunk",
        "__version__",
    ]
    assert dir(kvist) == sorted(kvist.__all__)


@pytest.mark.parametrize("name", kvist.__all__)
def test_each_public_name_is_there_and_documented(name):
    found = getattr(kvist, name)
    assert isinstance(found, str) or found.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        kvist.LLMs  # noqa: B018


def test_import_is_quick_and_light():
    code = "import time; t = time.perf_counter(); import kvist, sys; print(time.perf_counter() - t, *sys.modules)"
    runs = [python(code).split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) / 0.3 < 1  # seconds
    assert not {
        "numpy",
        "numba",
        "llvmlite",
        "rich",
        "typer",
        "tokenizers",
        "safetensors",
        "jinja2",
        "huggingface_hub",
    } & set(runs[0])


def test_the_library_needs_no_numba_once_kernels_are_compiled():
    assert python("import sys, kvist.llm; print('numba' in sys.modules, 'torch' in sys.modules)") == "False False\n"


def test_every_module_can_be_imported_by_itself():
    modules = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in (ROOT / "src" / "kvist").rglob("*.py")
    ]
    for module in modules:
        importlib.import_module(module.removesuffix(".__init__"))


def test_python_m_kvist():
    done = subprocess.run(
        [sys.executable, "-m", "kvist.cli.main", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"kvist {kvist.__version__}\n")


# --- what is shipped
# -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_runs_from_site_packages(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("kvist-*.whl")
    site = tmp_path / "site-packages"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    model = write_folder(MODELS["llama"], tmp_path / "llama")
    env = {**os.environ, "PYTHONPATH": str(site)}
    assert python("import kvist; print(kvist.__file__)", env=env, cwd=tmp_path).strip() == str(
        site / "kvist" / "__init__.py"
    )
    run = [str(site / "bin" / "kvist"), "run", str(model), "the hen", "--max-tokens", "4"]
    done = subprocess.run(run, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    assert (site / "kvist" / "py.typed").is_file()
    assert list(site.glob("kvist-*.dist-info/licenses/LICENSE"))


def lines() -> list[str]:
    """The README's commands that are kvist's."""
    return [line for block in blocks("sh") for line in block.replace("\\\n", "").splitlines() if "kvist " in line]


@pytest.mark.model
@pytest.mark.parametrize(
    "command",
    [line for line in lines() if "kvist serve" not in line],
)
def test_the_readmes_commands_run(command, smollm2_path, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.model
@pytest.mark.parametrize("command", [line for line in lines() if "kvist serve" in line])
def test_the_readmes_servers_serve(command, smollm2_path, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    model, *flags = command.split("#")[0].split()[2:]
    with serving.serving(model, *[str(keys) if flag == "keys" else flag for flag in flags]) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(server.url).status_code == (401 if "--api-key-file" in flags else 200)


@pytest.mark.model
@pytest.mark.parametrize("code", [code for code in blocks("python") if SERVER not in code])
def test_the_readmes_programs_run(code, smollm2_path):
    assert python(code)


@pytest.mark.model
@pytest.mark.parametrize("code", [code for code in blocks("python") if SERVER in code])
def test_the_readmes_clients_are_answered(code, smollm2_path):
    with serving.serving("smollm2") as server:
        assert python(code.replace(SERVER, server.url))


def test_the_readme_names_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", "".join(blocks("sh"))):
        assert f"\n{target}:" in makefile
