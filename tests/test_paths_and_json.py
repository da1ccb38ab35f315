"""The cache directory, and JSON from files of unknown origin."""

from pathlib import Path

import pytest

from kvist.errors import ModelFileError
from kvist.jsonfile import parse_json_object, read_json_object
from kvist.paths import cache_dir, models_dir


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "kvist"
    assert models_dir() == tmp_path / "kvist" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "kvist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "kvist"


def test_json(tmp_path: Path) -> None:
    assert parse_json_object(b'{"a": 1}', "x") == {"a": 1}
    for text in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ModelFileError) as caught:
            parse_json_object(text, "x")
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="twice"):
        parse_json_object('{"a": 1, "a": 2}', "x", unique=True)
    with pytest.raises(ModelFileError, match="No such file"):
        read_json_object(tmp_path / "none.json")
