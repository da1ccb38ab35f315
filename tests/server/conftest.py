"""A real server of the default model, and one of a tiny model, each for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import serving
from kvist import LLM
from serving import Served
from tiny import MODELS, write_folder

TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
You may call functions within <tools></tools>:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each call return JSON within <tool_call></tool_call>:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def served(smollm2_path: Path) -> Iterator[Served]:
    """The default model, no key."""
    with serving.serving("smollm2") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    """The same model as a library: what the server must say."""
    with LLM(smollm2_path) as made:
        yield made


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(MODELS["llama"], tmp_path_factory.mktemp("served") / "llama")


@pytest.fixture(scope="session")
def tool_client(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The default model under a template that takes tools."""
    path = tmp_path_factory.mktemp("template") / "tools.jinja"
    path.write_text(TOOL_TEMPLATE)
    with (
        serving.serving("smollm2", "--chat-template", str(path)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made
