"""Pulling from the hub, with the hub's library replaced by a folder: what is chosen, checked, kept, and said."""

import errno
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from kvist.errors import DownloadError, UnknownNameError, UsageError
from kvist.models.hub import installed, pull, resolve
from kvist.models.repository import repository_name


@dataclass
class Hub:
    """A hub with one repository, whose files lie in `folder`."""

    folder: Path
    error: Exception | None = None
    lies: dict[str, int] = field(default_factory=dict)

    def model_info(self, repo: str, files_metadata: bool, timeout: float) -> Any:
        if self.error:
            raise self.error

        @dataclass
        class Lfs:
            sha256: str

        @dataclass
        class File:
            rfilename: str
            size: int
            lfs: Lfs | None

        @dataclass
        class Info:
            siblings: list[File]
            sha: str = "abc123"
            tags: tuple[str, ...] = ("text-generation", "license:mit")

        files = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                name = str(path.relative_to(self.folder))
                digest = (
                    Lfs(hashlib.sha256(path.read_bytes()).hexdigest())
                    if path.suffix in (".safetensors", ".gguf")
                    else None
                )
                files.append(File(name, self.lies.get(name, path.stat().st_size), digest))
        return Info(files)

    def download(self, repo: str, *, revision: str, local_dir: str, allow_patterns: list[str]) -> str:
        assert revision == "abc123"
        for name in allow_patterns:
            target = Path(local_dir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / name, target)
        (Path(local_dir) / ".cache").mkdir()
        return local_dir


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path / "remote"
    (folder / "onnx").mkdir(parents=True)
    names = (
        "config.json generation_config.json tokenizer.json tokenizer_config.json model.safetensors README.md LICENSE"
    )
    others = "pytorch_model.bin onnx/model.safetensors consolidated.safetensors tokenizer.bin training_args.pt"
    for name in f"{names} {others}".split():
        (folder / name).write_text(f"this is {name}")
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


def fails(cache: Path, cause: str, error: type[Exception] = DownloadError) -> None:
    with pytest.raises(error, match=cause) as caught:
        pull("org/name")
    assert "\n" not in str(caught.value)
    assert list(cache.rglob("*")) == []


def test_pull(cache: Path, hub: Hub) -> None:
    seen: list[str] = []
    path = pull("org/name", lambda done, total, what: seen.append(what))
    assert path == cache / "org" / "name" == resolve("org/name")
    kept = (
        "LICENSE config.json generation_config.json kvist.json model.safetensors tokenizer.json tokenizer_config.json"
    )
    assert sorted(entry.name for entry in path.iterdir()) == kept.split()
    assert set(seen) == {"downloading", "checking"}
    (entry,) = installed()
    assert (entry.name, entry.path, entry.licence, entry.complete) == ("org/name", path, "mit", True)
    hub.error = RuntimeError("not asked again")
    assert pull("org/name") == path
    (path / "model.safetensors").write_text("short")
    assert not installed()[0].complete
    with pytest.raises(UsageError, match="only in part: run `kvist pull org/name`"):
        resolve("org/name")
    hub.error = None
    pull("org/name")
    assert installed()[0].complete


def test_one_gguf_file(cache: Path, hub: Hub) -> None:
    (hub.folder / "q").mkdir()
    (hub.folder / "q" / "m-q8.gguf").write_text("a gguf")
    path = pull("org/name:q/m-q8.gguf")
    assert path == cache / "org" / "name:m-q8.gguf" / "m-q8.gguf" == resolve("org/name:q/m-q8.gguf")
    assert [entry.name for entry in installed()] == ["org/name:m-q8.gguf"]
    assert resolve(installed()[0].name) == path
    with pytest.raises(UnknownNameError, match=r"did you mean q/m-q8\.gguf"):
        pull("org/name:q/m-q4.gguf")
    for file in hub.folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UsageError, match=r"name one, `kvist pull org/name:q/m-q8\.gguf`"):
        pull("org/name")


def test_only_pickles(cache: Path, hub: Hub) -> None:
    (hub.folder / "model.safetensors").unlink()
    fails(cache, "reads no pickles")


def test_files_that_do_not_arrive_whole(cache: Path, hub: Hub) -> None:
    hub.lies = {"config.json": 10**6}
    fails(cache, "config.json of org/name did not arrive whole")


class Response:
    """What an HTTP error carries."""

    status_code = 503
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


def http_error(kind: Any) -> Exception:
    error: Exception = kind.__new__(kind)
    error.response = Response()  # type: ignore[attr-defined]
    error.args = ("503 Server Error",)
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (http_error(errors.GatedRepoError), "is gated: accept its terms"),
        (http_error(errors.RepositoryNotFoundError), "not on the hub, or is private"),
        (http_error(errors.HfHubHTTPError), "the hub answered 503"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (errors.LocalEntryNotFoundError("no\nnetwork"), "cannot be reached .no network"),
        (ConnectionError("refused"), "cannot be reached .refused"),
        (TimeoutError(), "cannot be reached .TimeoutError"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk became full"),
    ],
)
def test_errors_of_the_library(cache: Path, hub: Hub, error: Exception, cause: str) -> None:
    hub.error = error
    fails(cache, cause)


def test_interrupt(cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupted)
    fails(cache, "interrupted")


def test_names() -> None:
    assert repository_name("a/b") is not None
    found = repository_name("a/b:c/d.gguf")
    assert found is not None and (found.repo, found.file, found.folder) == ("a/b", "c/d.gguf", "a/b:d.gguf")
    for name in ("a", "a/b/c", "/a/b", "../b", "a/..", "a/b:c.bin", "a/b:../c.gguf", "a b/c", ".a/b", ""):
        assert repository_name(name) is None
