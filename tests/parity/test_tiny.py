"""Tiny random models of all families, as folder and as GGUF file, live against transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model
from kvist.text import tokenizer_from_folder
from kvist.text.chat import render
from steps import logits_of
from tiny import MODELS, TEMPLATE, Tiny, write_folder, write_gguf

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

GPT2 = replace(
    MODELS["gpt2"], positions=1024, inner=256
)  # transformers reads neither of the two from a GGUF file of GPT-2
GEMMA = {"head_dim": 256, "kv_heads": 1, "heads": 2, "layers": 7, "tied": True, "rope_scaling": None}
GGUF_MODELS = [  # what transformers does not read from such a file has its default
    MODELS["llama"],
    GPT2,
    MODELS["qwen2"],
    replace(MODELS["qwen3"], head_dim=128),
    replace(MODELS["starcoder2"], extra={}),
    replace(MODELS["stablelm"], extra={}),
    replace(MODELS["falcon"], inner=256),
    replace(MODELS["gemma2"], **GEMMA, extra={"sliding_window": 24, "query_pre_attn_scalar": 256}),
    replace(MODELS["gemma3"], **GEMMA, extra={"sliding_window": 24, "query_pre_attn_scalar": 256}),
]
GGUF_CASES = [(tiny, "F32") for tiny in GGUF_MODELS]
GGUF_CASES += [(MODELS["llama"], kind) for kind in ("F16", "Q8_0", "Q4_0", "Q4_1")] + [(GPT2, "Q8_0")]


def compare(
    theirs: Any,
    path: Path,
    backend: CpuBackend,
    vocab: int,
    their_logits: Any,
    their_greedy: Any,
    by_length: bool = False,
) -> float:
    """The largest difference of a logit."""
    model, largest = load_model(path, backend, "f32"), 0.0
    for length in (1, 16, 65, 180):
        ids = np.random.RandomState(length).randint(2, vocab, length).tolist()
        expected, found = their_logits(theirs, ids), logits_of(model, backend, ids)
        largest = max(largest, float(np.abs(found - expected).max()))
        assert largest < 1e-4
        assert np.array_equal(found.argmax(1), expected.argmax(1))
        if not by_length:
            new = their_greedy(theirs, ids, 64)
            rows = logits_of(model, backend, [*ids, *new[:-1]], chunk=1)[len(ids) - 1 :]
            chosen = np.take_along_axis(rows, np.array(new)[:, None], 1)[:, 0]
            assert (rows.max(1) - chosen).max() < 2e-4, "their token is ours, or as likely"
    return largest


@pytest.mark.parametrize("name", MODELS)
def test_folder(
    load: Callable[[Path], Any],
    their_logits: Any,
    their_greedy: Any,
    backend: CpuBackend,
    differences: dict[str, float],
    tmp_path: Path,
    name: str,
) -> None:
    path = write_folder(MODELS[name], tmp_path)
    tiny = MODELS[name]
    found = compare(load(path), path, backend, tiny.vocab, their_logits, their_greedy, tiny.by_length)
    row = "falcon-grouped" if name == "falcon-grouped" else tiny.family  # as in the README's table
    differences[row] = max(differences.get(row, 0.0), found)


@pytest.mark.parametrize(("tiny", "kind"), GGUF_CASES, ids=lambda case: getattr(case, "name", case))
def test_gguf_file(
    load: Callable[[Path], Any],
    their_logits: Any,
    their_greedy: Any,
    backend: CpuBackend,
    tmp_path: Path,
    tiny: Tiny,
    kind: str,
) -> None:
    path = write_gguf(tiny, tmp_path / "tiny.gguf", kind)
    compare(load(path), path, backend, tiny.vocab, their_logits, their_greedy)


def test_tokenizer_and_template(transformers: Any, tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(write_folder(MODELS["llama"], tmp_path))
    ours = tokenizer_from_folder(tmp_path)
    for text in ("the heart", " a\n\n  b", "naïve 🙂 <|start|>x<|end|>", ""):
        assert ours.encode(text) == theirs.encode(text)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    for begin in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
        assert ours.chat_template == TEMPLATE
        found = render(
            TEMPLATE, messages, bos_token=ours.bos_token, eos_token=ours.eos_token, add_generation_prompt=begin
        )
        assert found == expected
