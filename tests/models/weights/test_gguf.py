"""The GGUF reader: what the `gguf` package writes it reads back; whatever is damaged gets one of two errors."""

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvist.errors import InternalError, ModelFileError, UnknownNameError, UnsupportedModelError
from kvist.models.weights import GgufFile, TensorInfo


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("flag", True)
    writer.add_array("tokens", ["a", "Ġb", "é", ""])
    writer.add_array("scores", [1.5, -2.0])
    writer.add_array("kinds", [1, 3, 6])
    writer.add_tensor("plain", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("half", np.arange(8, dtype=np.float16).reshape(2, 4))
    quantised = gguf.quants.quantize(
        np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blocks", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    brain = np.arange(6, dtype=np.uint16).reshape(2, 3)
    writer.add_tensor("brain", brain, raw_dtype=gguf.GGMLQuantizationType.BF16, raw_shape=(2, 3))
    writer.add_tensor("integers", np.arange(4, dtype=np.int64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_gguf_package_wrote(small: Path) -> None:
    file = GgufFile(small)
    assert file.path == small
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.block_count"] == 2
    assert file.metadata["llama.eps"] == 0.5
    assert file.metadata["flag"] is True
    assert file.metadata["tokens"] == ["a", "Ġb", "é", ""]
    scores, kinds = file.metadata["scores"], file.metadata["kinds"]
    assert isinstance(scores, np.ndarray) and scores.tolist() == [1.5, -2.0]
    assert isinstance(kinds, np.ndarray) and kinds.tolist() == [1, 3, 6]
    assert file.names() == ["blocks", "brain", "half", "integers", "plain"]
    assert file.info("plain") == TensorInfo("plain", "f32", (3, 4))
    assert np.array_equal(file.raw("plain"), np.arange(12, dtype=np.float32).reshape(3, 4))
    assert file.raw("half").dtype == np.float16
    assert file.info("blocks").shape == (2, 64)
    assert file.raw("blocks").shape == (2, 68)
    assert file.info("brain") == TensorInfo("brain", "bf16", (2, 3))
    assert file.raw("brain").dtype == np.uint16


def test_views_are_read_only_and_outlive_the_file(small: Path) -> None:
    file = GgufFile(small)
    plain = file.raw("plain")
    with pytest.raises(ValueError, match="read-only"):
        plain[0, 0] = 1
    file.close()
    file.close()
    assert plain[2, 3] == 11
    with pytest.raises(InternalError, match="closed"):
        file.raw("plain")


def test_foreign_type_is_refused_only_when_asked_for(small: Path) -> None:
    file = GgufFile(small)
    with pytest.raises(UnsupportedModelError, match="i64: kvist reads f32, f16, bf16, q8_0"):
        file.info("integers")
    with pytest.raises(UnknownNameError, match="did you mean plain"):
        file.info("plan")


def write(tmp_path: Path, *parts: bytes) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"".join(parts))
    return path


def header(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6 + struct.pack("<IQ", 4, 0)


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ((header(0, 1 << 60),), "metadata entries"),
        ((header(1 << 60, 0),), "tensors"),
        ((header(0, 1), struct.pack("<Q", 1 << 62), b"x" * 64), "a metadata key"),
        ((header(0, 1), text("k"), struct.pack("<IIQ", 9, 8, 1 << 22), b"x" * 64), "does not fit"),
        ((header(0, 1), text("k"), struct.pack("<IIQ", 9, 8, 1 << 62), b"x" * 64), "over the limit"),
        ((header(0, 1), text("k"), struct.pack("<IIQ", 9, 0, 1 << 23), b"x" * 64), "does not fit"),
        ((header(0, 1), text("k"), NESTED, b"x" * 64), "nests arrays"),
        ((header(0, 1), text("k"), struct.pack("<I", 77), b"x" * 64), "unknown value type 77"),
        ((header(0, 1), struct.pack("<Q", 1), b"\xff" * 30), "not UTF-8"),
        ((header(0, 2), *[text("k") + struct.pack("<IB", 7, 1)] * 2, b"x" * 9), "comes twice"),
        ((header(2, 0), *[tensor("t", (4,))] * 2, b"\0" * 64), "comes twice"),
        ((header(1, 0), tensor("t", (1 << 40, 1 << 40)), b"\0" * 64), "has the shape"),
        ((header(1, 0), tensor("t", (0,)), b"\0" * 64), "has the shape"),
        ((header(1, 0), tensor("t", (4,), offset=3), b"\0" * 64), "has the offset"),
        ((header(1, 0), tensor("t", (4,), offset=1 << 63), b"\0" * 64), "has the offset"),
        ((header(1, 0), tensor("t", (64,)), b"\0" * 64), "end after the file"),
        ((header(1, 0), tensor("t", (5,), kind=8), b"\0" * 64), "not blocks of 32"),
        ((header(1, 0), text("t"), struct.pack("<I", 9), b"\0" * 99), "9 dimensions"),
    ],
)
def test_impossible_headers(tmp_path: Path, parts: tuple[bytes, ...], cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause) as caught:
        GgufFile(write(tmp_path, *parts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "cause"), [(1, "version 1"), (9, "version 9"), (0x03000000, "big-endian")])
def test_other_versions(tmp_path: Path, version: int, cause: str) -> None:
    with pytest.raises(UnsupportedModelError, match=cause):
        GgufFile(write(tmp_path, header(0, 0, version)))


def test_a_part_of_a_split_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="one of 3 parts"):
        GgufFile(write(tmp_path, header(0, 1), text("split.count"), struct.pack("<IH", 2, 3)))


def read_everything(path: Path) -> None:
    """Open a file and read each tensor; only the two errors for bad files may come out, and no large allocation."""
    tracemalloc.start()
    try:
        file = GgufFile(path)
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
@given(changes=st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(small: Path, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(small.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    read_everything(write(tmp_path, bytes(data)))


@fuzzed
@given(length=st.integers(1, 2047))
def test_truncated(small: Path, tmp_path: Path, length: int) -> None:
    read_everything(write(tmp_path, small.read_bytes()[:length]))


@fuzzed
@given(
    at=st.integers(4, 700),
    value=st.sampled_from([0, 1 << 20, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)
def test_huge_numbers(small: Path, tmp_path: Path, at: int, value: int) -> None:
    data = bytearray(small.read_bytes())
    struct.pack_into("<Q", data, at, value)
    read_everything(write(tmp_path, bytes(data)))
