"""Tokenizers from a Hugging Face folder."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Inner

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.text import tokenizer_from_folder
from kvist.text.pieces import BYTE_OF


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = Inner(models.BPE({character: i for i, character in enumerate(BYTE_OF)}, []))
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>", "<|eot|>")])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    inner.enable_truncation(4)
    inner.enable_padding(length=10)
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def put(path: Path, value: object) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_tokenizer_json_alone(folder: Path) -> None:
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.encode("a long text")[0] == 256  # the post-processor's; nothing truncated, nothing padded
    assert len(tokenizer.encode("a long text")) == 12
    assert tokenizer.decode(tokenizer.encode("a long text")) == "a long text"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (None, (), None)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("", "")


def test_files_around_it(folder: Path) -> None:
    put(folder / "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "T"})
    put(folder / "config.json", {"eos_token_id": 3, "bos_token_id": 4})
    tokenizer = tokenizer_from_folder(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (256, (257, 3), "T")
    put(folder / "generation_config.json", {"eos_token_id": [258, 257]})
    assert tokenizer_from_folder(folder).eos_ids == (257, 258)
    templates = [{"name": "tools", "template": "X"}, {"name": "default", "template": "D"}]
    put(folder / "tokenizer_config.json", {"chat_template": templates})
    tokenizer = tokenizer_from_folder(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (4, (258, 257), "D")
    put(folder / "chat_template.jinja", "J")
    assert tokenizer_from_folder(folder).chat_template == "J"


def test_bad_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match="UTF-8"):
        tokenizer_from_folder(folder)
    put(folder / "tokenizer_config.json", "{")
    with pytest.raises(ModelFileError, match="not valid JSON"):
        tokenizer_from_folder(folder)
    put(folder / "tokenizer.json", "{}")
    with pytest.raises(ModelFileError, match="damaged or too new"):
        tokenizer_from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match="missing"):
        tokenizer_from_folder(folder)
    put(folder / "tokenizer.model", "x")
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        tokenizer_from_folder(folder)


def test_decoders(folder: Path) -> None:
    inner = Inner.from_file(str(folder / "tokenizer.json"))
    inner.decoder = decoders.WordPiece()
    inner.save(str(folder / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="decoder WordPiece is not supported"):
        tokenizer_from_folder(folder)
    inner.decoder = decoders.Metaspace()
    inner.save(str(folder / "tokenizer.json"))
    assert tokenizer_from_folder(folder).leading_spaces == 1
    inner.decoder = decoders.Metaspace(prepend_scheme="never")
    inner.save(str(folder / "tokenizer.json"))
    assert tokenizer_from_folder(folder).leading_spaces == 0
