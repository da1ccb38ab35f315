"""The safetensors reader: one file, shards, and headers that lie."""

import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from kvist.errors import InternalError, ModelFileError, UnknownNameError, UnsupportedModelError
from kvist.models.weights import SafetensorsFile, TensorInfo, open_model

INDEX = "model.safetensors.index.json"


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[int], first: int, after: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, after]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    arrays = {"plain": np.arange(12, dtype=np.float32).reshape(3, 4), "half": np.ones((2, 2), np.float16)}
    save_file({**arrays, "counts": np.arange(3, dtype=np.int64), "scalar": np.array(2.0, np.float32)}, path)
    return path


def test_reads_what_the_library_wrote(small: Path) -> None:
    file = SafetensorsFile(small)
    assert file.names() == ["counts", "half", "plain", "scalar"]
    assert file.info("plain") == TensorInfo("plain", "f32", (3, 4))
    assert np.array_equal(file.raw("plain"), np.arange(12, dtype=np.float32).reshape(3, 4))
    assert file.raw("half").dtype == np.float16
    assert file.raw("scalar").shape == () and file.raw("scalar") == 2
    assert not file.raw("plain").flags.writeable
    with pytest.raises(UnsupportedModelError, match=r"counts of model\.safetensors is of type I64"):
        file.info("counts")
    with pytest.raises(UnknownNameError, match="did you mean plain"):
        file.raw("plane")
    kept = file.raw("plain")
    file.close()
    assert kept[0, 1] == 1
    with pytest.raises(InternalError, match="closed"):
        file.raw("plain")


def test_bfloat16_and_unaligned_data(tmp_path: Path) -> None:
    data = np.array([1, 2, 3, 4], np.uint16).tobytes()
    header = json.dumps({"b": entry("BF16", [2, 2], 0, 8)}).encode()
    header += b" " * (len(header) % 2 == 0)  # an odd length leaves the numbers unaligned
    file = SafetensorsFile(write(tmp_path / "m.safetensors", header, data))
    view = file.raw("b")
    assert view.dtype == np.uint16 and view.tolist() == [[1, 2], [3, 4]]
    assert view.flags.aligned and not view.flags.writeable


def test_shards(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 2), np.float32)}, tmp_path / "one.safetensors")
    save_file({"b": np.ones(3, np.float32)}, tmp_path / "two.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    file = open_model(tmp_path)
    assert isinstance(file, SafetensorsFile)
    assert file.names() == ["a", "b"]
    assert file.raw("b").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "shard", ["../one.safetensors", "/etc/passwd", "a/../../x", "", "..", "C:\\x", "a\0b", 3, None]
)
def test_shards_outside_the_folder(tmp_path: Path, shard: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelFileError, match="outside its folder"):
        SafetensorsFile(tmp_path)


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(ModelFileError, match="in the index but missing"):
        SafetensorsFile(tmp_path)
    save_file({"other": np.zeros(2, np.float32)}, tmp_path / "one.safetensors")
    with pytest.raises(ModelFileError, match="lacks the tensor a"):
        SafetensorsFile(tmp_path)
    for text in ("{}", "[1]", "{", '{"weight_map": {}}', '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ModelFileError):
            SafetensorsFile(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [4], 0, 20)},
        {"a": entry("F32", [1 << 62, 1 << 62], 0, 16)},
        {"a": entry("F32", [4], 8, 24)},
        {"a": entry("F32", [-4], 0, 16)},
        {"a": entry("F99", [4], 0, 16)},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        {"a": entry("F32", [4], 16, 0)},
        b'{"a": %b, "a": %b}' % ((json.dumps(entry("F32", [4], 0, 16)).encode(),) * 2),
        b"{" * 5000,
        b"\xff\xfe",
    ],
)
def test_impossible_headers(tmp_path: Path, header: object) -> None:
    with pytest.raises(ModelFileError) as caught:
        SafetensorsFile(write(tmp_path / "m.safetensors", header, b"\0" * 16))
    assert "\n" not in str(caught.value)


def read_everything(path: Path) -> None:
    tracemalloc.start()
    try:
        file = SafetensorsFile(path)
        for name in file.names():
            with suppress(UnsupportedModelError):
                file.raw(name).tobytes()
    except (ModelFileError, UnsupportedModelError) as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


fuzzed = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(small: Path, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(small.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    read_everything(path)


@fuzzed
@given(length=st.integers(1, 399))
def test_truncated(small: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(small.read_bytes()[:length])
    read_everything(path)


numbers = st.one_of(st.integers(0, 40), st.sampled_from([-1, 1 << 31, 1 << 62, 1 << 63, 1 << 64, 1 << 100]))


@fuzzed
@given(
    shape=st.lists(numbers, max_size=10),
    offsets=st.lists(numbers, min_size=1, max_size=3),
    dtype=st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "BOOL", "", "X"]),
)
def test_huge_numbers(tmp_path: Path, shape: list[int], offsets: list[int], dtype: str) -> None:
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    read_everything(write(tmp_path / "m.safetensors", header, b"\0" * 40))


@pytest.mark.parametrize("length", [0, 1, 17, 1 << 20, 100_000_001, 1 << 63, (1 << 64) - 1])
def test_header_lengths(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b"\0" * 8)
    with pytest.raises(ModelFileError):
        SafetensorsFile(path)
