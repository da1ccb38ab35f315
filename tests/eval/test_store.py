"""Results in a file: found again, never mixed up, whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvist.errors import UsageError
from kvist.eval.store import Store, key_of, model_digest


def test_results_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Store(path) as store:
        assert store.get("a") is None
        store.put("a", {"x": (0.1, None)})
        store.put("b", [True])
        assert store.get("a") == {"x": [0.1, None]}  # at once as a file gives it back
    with Store(path) as store:
        assert (store.get("a"), store.get("b"), store.get("c")) == ({"x": [0.1, None]}, [True], None)


def test_half_a_line_is_cut_off_wherever_the_kill_came(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Store(path) as store:
        store.put("a", 1)
        whole = path.read_bytes()
        store.put("b", 2)
    both = path.read_bytes()
    for end in range(len(whole) + 1, len(both)):
        path.write_bytes(both[:end])
        with Store(path) as store:
            assert (store.get("a"), store.get("b")) == (1, None)
            assert path.read_bytes() == whole
            store.put("b", 2)
        assert path.read_bytes() == both


@pytest.mark.parametrize("content", [b"hello\n", b'{"key": 1}\n', b"[]\n", b"hello", b'{"prompt": "x"'])
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="line 1 is no result"):
        Store(path)
    assert path.read_bytes() == content


def test_one_run_at_a_time_and_only_files(tmp_path: Path) -> None:
    with Store(tmp_path / "x"), pytest.raises(UsageError, match="another run"):
        Store(tmp_path / "x")
    with Store(tmp_path / "x"):
        pass
    with pytest.raises(UsageError, match="no regular file"):
        Store(Path("/dev/null"))


def test_without_a_file_results_stay_in_memory() -> None:
    with Store() as store:
        store.put("a", [1])
        assert store.get("a") == [1]


def test_keys_and_digests_depend_on_all_they_are_told(tmp_path: Path) -> None:
    assert key_of("a", [1]) == key_of("a", [1]) != key_of("a", [2])
    (tmp_path / "one").write_text("x")
    alone = model_digest(tmp_path / "one")
    folder = model_digest(tmp_path)
    (tmp_path / "two").write_text("x")
    assert alone == folder != model_digest(tmp_path)
    (tmp_path / "one").write_text("y")
    assert model_digest(tmp_path / "one") != alone
