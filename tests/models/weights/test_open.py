"""Opening a model: what a file holds decides, and foreign files are told apart."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvist.errors import ModelFileError, UsageError
from kvist.models.weights import GgufFile, SafetensorsFile, open_model

EMPTY_GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)


def test_decides_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(EMPTY_GGUF)
    assert isinstance(open_model(tmp_path / "x.bin"), GgufFile)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "y.gguf")
    assert isinstance(open_model(tmp_path / "y.gguf"), SafetensorsFile)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "is empty"),
        (b"GGUF", "truncated"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git-lfs pointer"),
        (pickle.dumps({"a": 1, "b": [2]}), "is a pickle.*save_pretrained"),
        (b'{"architectures": []}', "JSON file"),
        (b"ggjt\x03\0\0\0 and more", "older than GGUF"),
        (b"\x08\0\0", "too short"),
        (b"\x89PNG\r\n\x1a\n 12345678", "neither"),
        (bytes(64), "neither"),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes, cause: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=cause) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(ModelFileError, match="zip archive"):
        open_model(tmp_path / "m.safetensors")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match="holds no"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"only as a pickle.*safe_serialization"):
        open_model(tmp_path)
    (tmp_path / "a.gguf").write_bytes(EMPTY_GGUF)
    assert isinstance(open_model(tmp_path), GgufFile)
    (tmp_path / "b.gguf").write_bytes(EMPTY_GGUF)
    with pytest.raises(UsageError, match=r"several models \(a.gguf, b.gguf\)"):
        open_model(tmp_path)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    assert isinstance(open_model(tmp_path), SafetensorsFile)
