"""Text to token ids and back: tokenizer, incremental detokenizer, chat templates. Knows no model and no weights."""

from kvist.text.chat import render
from kvist.text.detokenizer import Detokenizer
from kvist.text.gguf_tokenizer import tokenizer_from_gguf
from kvist.text.hf_tokenizer import tokenizer_from_folder
from kvist.text.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer", "render", "tokenizer_from_folder", "tokenizer_from_gguf"]
