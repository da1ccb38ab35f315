"""Open a model's weights, whatever they lie in: decided by what the file holds, not by what it is called."""

from __future__ import annotations

import struct
from pathlib import Path

from kvist.errors import ModelFileError, UsageError
from kvist.models.weights.gguf import MAGIC, GgufFile
from kvist.models.weights.safetensors import INDEX, MAX_HEADER, SINGLE, SafetensorsFile

CONVERT = (
    "convert it once: load it with transformers' AutoModelForCausalLM.from_pretrained(FOLDER) "
    "and write it with .save_pretrained(OUT, safe_serialization=True)"
)


def open_model(path: Path) -> GgufFile | SafetensorsFile:
    """Open a GGUF file, a safetensors file, or a folder with either; both are a `TensorFile`.

    A folder is searched for `model.safetensors.index.json`, `model.safetensors`, then for one *.safetensors or *.gguf.
    Raises ModelFileError where it is missing, empty, truncated or of another kind (it says which),
    UsageError where a folder leaves the choice open.
    """
    try:
        if path.is_dir():
            return _open_folder(path)
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} does not exist: check the path, or pull the model with `kvist pull`") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    if head.startswith(MAGIC):
        return GgufFile(path)
    foreign = _foreign(head)
    if foreign is None:
        return SafetensorsFile(path)
    raise ModelFileError(f"{path} {foreign}")


def _open_folder(path: Path) -> GgufFile | SafetensorsFile:
    if (path / INDEX).is_file() or (path / SINGLE).is_file():
        return SafetensorsFile(path)
    files = sorted(path.iterdir())
    for suffix in (".safetensors", ".gguf"):
        found = [file for file in files if file.suffix == suffix]
        if len(found) == 1:
            return open_model(found[0])
        if found:
            names = ", ".join(file.name for file in found[:8])
            raise UsageError(f"{path} holds several models ({names}): name one of the files")
    if any(file.suffix in (".bin", ".pt", ".pth", ".ckpt") for file in files):
        raise ModelFileError(f"{path} has its weights only as a pickle, which can run code when read: {CONVERT}")
    raise ModelFileError(f"{path} holds no *.safetensors and no *.gguf: check the path, or pull the model again")


def _foreign(head: bytes) -> str | None:
    """What is wrong with a file that starts with `head` and is not GGUF; None where it looks like safetensors."""
    text = head.lstrip().lower()
    if not head:
        return "is empty: the download did not complete, get the file again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the model: run `git lfs pull` in its folder, or `kvist pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a model: the download went wrong (a login or error page?), get the file again"
    if head.startswith(b"PK\x03\x04"):
        return f"is a zip archive, a PyTorch checkpoint perhaps, which can run code when read: {CONVERT}"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[2:3] != b"\x00":
        return f"is a pickle, which can run code when read: {CONVERT}"
    if head.startswith((b"ggml", b"lmgg", b"tjgg", b"fmgg", b"ggjt", b"ggla")):
        return "is of a format older than GGUF: get the model as a GGUF file"
    if text.startswith(b"{"):
        return "is a JSON file, not the weights: name the folder it lies in"
    if len(head) < 10:
        return "is too short for a model: the download did not complete, get the file again"
    (length,) = struct.unpack_from("<Q", head)
    if length > MAX_HEADER or head[8:9] != b"{":
        return "is neither a GGUF nor a safetensors file: check the path"
    return None
