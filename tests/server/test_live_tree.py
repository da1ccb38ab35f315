"""The prefix tree as it is shown: each page in one twig, and where requests left it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvist import LLM, SamplingParams
from kvist.server import live_tree
from kvist.server.history import RequestHistory
from kvist.server.live_tree import cut, grown
from kvist.server.mailbox import Ended
from kvist.server.worker import Order

SIZE = 16


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Iterator[LLM]:
    with LLM(tiny_path, max_model_len=256) as made:
        yield made


@pytest.fixture
def llm(tiny: LLM) -> LLM:
    tiny.engine.manager.flush()
    return tiny


def fill(llm: LLM, prompts: list[list[int]], salt: bytes = b"") -> None:
    """Publish the full pages of prompts."""
    manager = llm.engine.manager
    for prompt in prompts:
        with manager.match(prompt, salt=salt) as match:
            table = manager.open(match)
        rest = prompt[table.computed :]
        assert manager.reserve(table, len(rest))
        manager.commit(table, rest)
        manager.release(table)


def random_prompts(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    stems = [[rng.randrange(3) for _ in range(rng.randint(1, 5) * SIZE)] for _ in range(4)]
    return [[*rng.choice(stems), *(rng.randrange(2) for _ in range(rng.randint(0, 40)))] for _ in range(count)]


def chains(tree: dict[str, Any]) -> set[tuple[int, ...]]:
    """The pages from the root to each twig's end."""
    found: list[tuple[int, ...]] = []
    for twig in tree["twigs"]:
        before = () if twig["parent"] is None else found[twig["parent"]]  # parents come first
        found.append((*before, *twig["pages"]))
    return set(found)


@pytest.mark.parametrize("seed", range(5))
def test_every_page_is_in_one_twig(llm: LLM, seed: int) -> None:
    prompts = random_prompts(seed, 40)
    fill(llm, prompts)
    fill(llm, random_prompts(seed + 100, 20), salt=b"another")
    tree = grown(cut(llm, b""), [], llm.tokenizer)
    shown = [page for twig in tree["twigs"] for page in twig["pages"]]
    assert len(shown) == len(set(shown)) == tree["pages"] and tree["left_out"] == {"twigs": 0, "pages": 0}
    manager = llm.engine.manager
    ends = set()
    for prompt in prompts:
        with manager.match(prompt) as match:
            assert set(match.pages) <= set(shown)
            ends.add(match.pages)
    known = chains(tree)
    assert all(any(chain[: len(end)] == end for chain in known) for end in ends)
    for twig in tree["twigs"]:  # no twig could be longer: it ends where the tree branches, or ends
        assert twig["children"] != 1 and twig["children"] == sum(one["parent"] == twig["id"] for one in tree["twigs"])


def test_of_a_large_tree_the_pages_used_last_are_shown(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(llm, [[i, *[0] * (3 * SIZE)] for i in range(20)])
    with llm.engine.manager.match([7, *[0] * (3 * SIZE)]):
        pass  # used again
    monkeypatch.setattr(live_tree, "MOST_TWIGS", 3)
    tree = grown(cut(llm, b""), [], llm.tokenizer)
    assert tree["pages"] == 60 and tree["left_out"] == {"twigs": 17, "pages": 51}
    first = [llm.engine.manager.ledgers[0].index.pages[twig["pages"][0]].tokens[0] for twig in tree["twigs"]]
    assert first == [7, 19, 18]


def test_where_requests_left_the_tree(llm: LLM) -> None:
    history, prompt = RequestHistory(), [5, 6, 7, 8] * 10
    asked = [[*prompt[:21], 9, 9, 9, 9, *prompt[25:]], [1, 2, 3], [*prompt, 4], prompt]
    fill(llm, [prompt])
    for number, ids in enumerate(asked):
        (output,) = llm.generate([ids], SamplingParams(max_tokens=1, temperature=0))
        order = Order(f"r{number}", ids, SamplingParams(max_tokens=1))
        history.note(llm.engine, order, output.metrics, Ended(output))
    broken = [record for record in history.since(0) if record.broke]
    tree = grown(cut(llm, b""), broken, llm.tokenizer)
    assert [one["request"] for one in tree["breaks"]] == ["r0"]
    (broke,) = tree["breaks"]
    twig = tree["twigs"][broke["twig"]]
    depth = twig["depth"] + broke["page"]
    assert (depth, broke["slot"]) == (21 // SIZE, 21 % SIZE)
    node = llm.engine.manager.ledgers[0].index.pages[twig["pages"][broke["page"]]]
    assert live_tree._tokens(node) == prompt[SIZE : 2 * SIZE]
    llm.engine.manager.flush()
    assert grown(cut(llm, b""), broken, llm.tokenizer)["breaks"] == []


def test_sequences_are_at_the_tips(llm: LLM) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6] * 5
    names = [
        llm.engine.submit(prompt, SamplingParams(max_tokens=30, ignore_eos=True), salt=salt) for salt in (b"", b"x")
    ]
    for _ in range(5):
        llm.engine.step()
    tree = grown(cut(llm, b""), [], llm.tokenizer)
    (tip,) = tree["tips"]
    sequence = next(s for s in llm.engine.scheduler.running if s.request_id == names[0])
    assert (tip["request"], tip["twig"]) == (names[0], 0) and tree["twigs"][0]["live"] == 2
    assert tip["text"] == llm.tokenizer.decode(sequence.tokens[32:], skip_special=False, continues=True)
    for name in names:
        llm.engine.cancel(name)
    assert grown(cut(llm, b""), [], llm.tokenizer)["tips"] == []
