"""Pull a model from the Hugging Face hub: ORG/NAME (config, tokenizer, safetensors) or ORG/NAME:FILE.gguf."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvist.errors import DownloadError, UsageError, unknown_name
from kvist.models.staging import FULL, Progress, Staging, file_sizes, sha256, watched

RECORD = "kvist.json"
"""In the folder of a pulled repository: {"name", "revision", "licence", "files": {name: bytes}}."""

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
)
UNWANTED = ("consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.msgpack", "*.h5")

_NAME = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(:(?P<file>[\w][\w./-]*\.gguf))?", re.ASCII)


@dataclass(frozen=True)
class RepositoryName:
    """A model on the hub: the repository, and one GGUF file in it where that was named."""

    repo: str
    file: str | None

    @property
    def folder(self) -> str:
        """Where it is kept below the models' folder."""
        return self.repo if self.file is None else f"{self.repo}:{self.file.rpartition('/')[2]}"


def repository_name(name: str) -> RepositoryName | None:
    """`name` as ORG/NAME or ORG/NAME:FILE.gguf; None where it is neither."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        return None
    return RepositoryName(match["repo"], match["file"])


def pull_repository(name: RepositoryName, stage: Staging, progress: Progress) -> None:
    """Download the repository's files into the stage's content and check sizes and checksums.

    Raises DownloadError where it does not exist, is gated, has no weights kvist reads, or cannot be reached;
    UnknownNameError for a GGUF file it does not have.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _one_line_errors(name.repo), _no_bars():
        info = HfApi().model_info(name.repo, files_metadata=True, timeout=20)
        files = _choose(name, {file.rfilename: file for file in info.siblings or []})
        sizes = {file: int(entry.size or 0) for file, entry in files.items()}
        total = sum(sizes.values())
        stage.need(total + (64 << 20))
        with watched(lambda: sum(file_sizes(stage.scratch)), total, "downloading", progress):
            snapshot_download(
                name.repo, revision=info.sha, local_dir=str(stage.scratch), allow_patterns=[_literal(f) for f in files]
            )
    for file, entry in files.items():
        progress(0, sizes[file], "checking")
        _check(name.repo, stage.scratch / file, sizes[file], getattr(entry.lfs, "sha256", None))
        shutil.move(stage.scratch / file, stage.content / file.rpartition("/")[2])
    kept = {file.rpartition("/")[2]: size for file, size in sizes.items()}
    record = {"name": name.folder, "revision": info.sha, "licence": _licence(info.tags or []), "files": kept}
    (stage.content / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _choose(name: RepositoryName, found: dict[str, Any]) -> dict[str, Any]:
    """The files to download, of all that the repository has."""
    ggufs = [file for file in found if file.endswith(".gguf")]
    if name.file is not None:
        if name.file not in found:
            raise unknown_name(f"file of {name.repo}", name.file, ggufs)
        return {name.file: found[name.file]}
    chosen = {
        file: entry
        for file, entry in found.items()
        if any(fnmatch.fnmatch(file, pattern) for pattern in WANTED)
        and not any(fnmatch.fnmatch(file, pattern) for pattern in UNWANTED)
        and "/" not in file
    }
    if any(file.endswith(".safetensors") for file in chosen):
        return chosen
    if ggufs:
        raise UsageError(
            f"{name.repo} has GGUF files only: name one, `kvist pull {name.repo}:{min(ggufs)}` for instance"
        )
    raise DownloadError(
        f"{name.repo} has no *.safetensors and no *.gguf: kvist reads no pickles, use another repository"
    )


def _check(repo: str, path: Path, size: int, digest: str | None) -> None:
    """Raise DownloadError unless the file is whole."""
    if not path.is_file() or path.stat().st_size != size or (digest and sha256(path) != digest):
        raise DownloadError(
            f"{path.name} of {repo} did not arrive whole, nothing was kept: run `kvist pull {repo}` again"
        )


def _literal(file: str) -> str:
    """A file's name as a pattern that matches only it."""
    return re.sub(r"([*?[])", r"[\1]", file)


def _licence(tags: list[str]) -> str:
    """The licence that the repository's tags name."""
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "unknown")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the hub's library from drawing progress bars: we report progress ourselves."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _one_line_errors(repo: str) -> Iterator[None]:
    """Turn what the hub's library raises into DownloadErrors; full disks and our own errors pass."""
    from huggingface_hub import errors

    try:
        yield
    except (DownloadError, UsageError):
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo}, run `hf auth login`, pull again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repo} is not on the hub, or is private: check the name, or run `hf auth login` and pull again"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(f"cannot pull {repo}: HF_HUB_OFFLINE is set; unset it and pull again") from error
    except Exception as error:  # the library's transport has changed twice; its errors share no base
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"the hub answered {status}" if status else f"the hub cannot be reached ({cause})"
        raise DownloadError(f"cannot pull {repo}: {what}; check the network and pull again") from error
