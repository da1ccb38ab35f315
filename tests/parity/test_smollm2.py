"""The real model: kvist against transformers, which dequantises the same GGUF file to float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import Model, load_model
from kvist.models.weights import GgufFile
from kvist.text import Tokenizer, tokenizer_from_gguf
from kvist.text.chat import render
from steps import greedy, logits_of

pytestmark = [pytest.mark.parity, pytest.mark.model, pytest.mark.filterwarnings("ignore")]

STORY = (
    "In the winter of 1897 a small ship left the harbour of Tromsø with eleven men, 34 dogs and food for two years. "
    "Nobody on board had been further north than the island they could see from the pier. The captain wrote in his diary: "
    "'We sail because the map ends here, and I cannot sleep for thinking of what lies past its edge.' "
)
TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", "\t\tx\t", " \n \n", "Hello, world!", " Hello", "hello   world  ", "don't I'LL we've she'd",
    "1234567890", "3.14159e-10", "12,345.67 + 0x1F", "a1b22c333", "naïve café Ångström", "Cafe\u0301 (decomposed)",
    "日本語のテキスト", "안녕하세요 세계", "Привет, мир!", "שלום عالم", "ไทยไม่มีวรรค", "🙂👩‍👩‍👧‍👦🇸🇪", "\u200b\u200d\ufeff", "\u00a0nbsp\u2003em",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n", "{\"key\": [1, 2.5, null, \"a\\nb\"]}", "<div class=\"x\">&amp;</div>",
    "SELECT * FROM t WHERE a >= 10;", "https://example.org/a?b=c&d=%20#e", "\\frac{a}{b} \\n", "....!!!???---___***", "CamelCaseWord snake_case_word",
    "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b", "<|endoftext|><|im_start|>", "<|im_start", "<|not_a_token|>", "\r\n windows \r\n lines\r\n",
    "word " * 50, "a" * 300, STORY,
]  # fmt: skip
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  spaces \n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "<|im_end|> {{ 1 }}"},
    ],
]


@pytest.fixture(scope="module")
def theirs(load: Callable[[Path], Any], smollm2_path: Path) -> Any:
    return load(smollm2_path)


@pytest.fixture(scope="module")
def model(backend: CpuBackend, smollm2_path: Path, transformers: Any) -> Model:
    return load_model(smollm2_path, backend, "f32")


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return tokenizer_from_gguf(GgufFile(smollm2_path).metadata)


@pytest.fixture(scope="module")
def their_tokenizer(transformers: Any, smollm2_path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


@pytest.mark.parametrize("length", [10, 64, 130, 500])
def test_logits(
    theirs: Any, their_logits: Any, model: Model, backend: CpuBackend, tokenizer: Tokenizer, length: int
) -> None:
    ids = tokenizer.encode(STORY * 8)[:length]
    assert len(ids) == length
    found, expected = logits_of(model, backend, ids), their_logits(theirs, ids)
    difference = np.abs(found - expected).max()
    print(f"{length} tokens: largest difference {difference:.2e}")
    assert difference < 1e-3


@pytest.mark.parametrize("length", [10, 130, 500])
def test_greedy_tokens(
    theirs: Any, their_greedy: Any, model: Model, backend: CpuBackend, tokenizer: Tokenizer, length: int
) -> None:
    ids = tokenizer.encode(STORY * 8)[:length]
    assert greedy(model, backend, ids, 64) == their_greedy(theirs, ids, 64)


def test_greedy_answer_to_a_chat(
    theirs: Any, their_greedy: Any, model: Model, backend: CpuBackend, tokenizer: Tokenizer
) -> None:
    text = render(tokenizer.chat_template, CHATS[0], bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    ids = tokenizer.encode(text, add_special=False)
    assert greedy(model, backend, ids, 64) == their_greedy(theirs, ids, 64)


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids(tokenizer: Tokenizer, their_tokenizer: Any, text: str) -> None:
    assert tokenizer.encode(text) == their_tokenizer.encode(text)


def test_digits_of_all_scripts_stand_alone(tokenizer: Tokenizer, their_tokenizer: Any) -> None:
    """transformers ignores the file's splitting rule ("smollm"); given the one of SmolLM2's tokenizer.json it
    agrees.
    """
    inner = their_tokenizer.backend_tokenizer
    rule, inner.pre_tokenizer = (
        inner.pre_tokenizer,
        Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    )
    try:
        for text in ("², ½, Ⅳ, ٣٤", *TEXTS):
            assert tokenizer.encode(text) == their_tokenizer.encode(text)
    finally:
        inner.pre_tokenizer = rule


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("messages", CHATS)
def test_chat_text(tokenizer: Tokenizer, their_tokenizer: Any, messages: list[dict[str, str]], begin: bool) -> None:
    expected = their_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
    found = render(
        tokenizer.chat_template,
        messages,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        add_generation_prompt=begin,
    )
    assert found == expected
