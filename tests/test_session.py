"""`LLM.session`: whatever was forked, rolled back or stopped, the answer is that of a fresh request, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist import LLM, SamplingParams, Session
from kvist.errors import RequestError, UsageError

PAGE = 16
PARAMS = SamplingParams(temperature=0.9, seed=11, max_tokens=40, ignore_eos=True)
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(replace(tiny.MODELS["llama"], positions=2048), tmp_path_factory.mktemp("m") / "llama")


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, kv_cache_memory_bytes=8 << 20, check_integrity=True) as made:
        yield made


@pytest.fixture
def fresh(folder: Path) -> Iterator[LLM]:
    """The same model, with nothing in its cache, ever."""
    with LLM(folder, kv_cache_memory_bytes=8 << 20, enable_prefix_caching=False) as made:
        yield made


def answer(made: Session, params: SamplingParams = PARAMS) -> tuple[list[tuple[int, bytes]], tuple[int, ...], int]:
    """Every row of logits that the answer was chosen from, its tokens, and how many tokens were found in the cache."""
    rows, engine = [], made._engine
    engine.observe = lambda request, position, logits: rows.append((position, logits.tobytes()))
    output = made.generate(params)
    engine.observe = None
    return rows, output.outputs[0].token_ids, output.metrics.cached_tokens


def same_as_fresh(made: Session, fresh: LLM, params: SamplingParams = PARAMS) -> int:
    """Check an answer against a fresh request with the same tokens; how many of them were cached."""
    with fresh.session() as other:
        other.append(made.token_ids)
        before = made.token_ids
        rows, tokens, cached = answer(made, params)
        expected, wanted, none = answer(other, params)
        assert none == 0
        assert tokens == wanted
        assert rows == expected
        assert made.token_ids == [*before, *tokens]
    return cached


def full(tokens: int) -> int:
    """Tokens of whole pages, without the last one, whose logits are wanted."""
    return (tokens - 1) // PAGE * PAGE


def test_text_and_tokens_are_appended_and_found_again(llm: LLM, fresh: LLM) -> None:
    with llm.session() as session:
        session.append("the hen sat on the stone and ate the ants that rose in rain")
        assert session.token_ids == llm.tokenizer.encode(session.text)
        assert same_as_fresh(session, fresh) == 0
        history = len(session)
        session.append(" and then")
        session.append(np.array([5, 6]))
        session.append("")
        assert same_as_fresh(session, fresh) == full(history)  # the last token's K and V were never needed


def test_rolled_back_it_answers_as_if_nothing_had_been(llm: LLM, fresh: LLM) -> None:
    session = llm.session("story")
    session.append("the hen sat on the stone and ate the ants")
    start, prompt = session.mark(), len(session)
    first = answer(session)
    session.rollback(40)
    assert len(session) == prompt
    again = answer(session)
    assert again[:2] == first[:2]
    assert again[2] == prompt - 1  # to the token: the page that the answer filled begins with the prompt's tail
    for back in (1, 15, 16, 17, 39):
        session.rollback(back)
        assert same_as_fresh(session, fresh) >= full(len(session) - 40)
        session.rollback(40)
        session.append([7] * back)
    session.rollback(start)
    assert len(session) == prompt == start.length
    session.rollback(len(session))
    assert session.token_ids == [] and session.text == ""
    with pytest.raises(RequestError, match="prompt is empty"):
        session.generate(PARAMS)


def test_forks_share_every_page_and_do_not_see_each_other(llm: LLM, fresh: LLM) -> None:
    session = llm.session()
    session.append("the hen sat on the stone " * 8)
    answer(session)
    shared = full(len(session))
    allocated = llm.engine.manager.counters.pages_allocated
    forks = [session.fork(f"fork {i}") for i in range(3)]
    assert llm.engine.manager.counters.pages_allocated == allocated  # forking costs nothing
    assert {fork.name for fork in forks} == {"fork 0", "fork 1", "fork 2"}
    for i, fork in enumerate(forks):
        fork.append([20 + i])
        # the first runs the tail that had not filled a page, the others find it in the first one's page, and copy it
        assert same_as_fresh(fork, fresh, replace(PARAMS, seed=i)) == (shared if i == 0 else len(session))
    own = -(-(len(forks[0]) - 1 - shared) // PAGE)
    assert llm.engine.manager.counters.pages_allocated == allocated + 3 * own
    assert same_as_fresh(session, fresh) >= shared
    assert session.text == session.fork().text


def test_under_pressure_it_is_only_slower(folder: Path, fresh: LLM) -> None:
    with LLM(folder, kv_cache_memory_bytes=192 << 10, max_model_len=256, check_integrity=True) as small:
        session = small.session()
        session.append("the hen sat on the stone " * 4)
        fork = session.fork()
        assert same_as_fresh(session, fresh) == 0
        for i in range(8):  # others need the memory
            small.generate([[i + 3] * 150], GREEDY)
        assert small.engine.manager.counters.pages_evicted > 0
        assert same_as_fresh(session, fresh) == 0
        assert same_as_fresh(fork, fresh) > 0


def test_the_next_turn_finds_the_whole_history(llm: LLM, fresh: LLM) -> None:
    """Random weights: the tokens are not those that their text encodes to, so only kept tokens can be found."""
    session = llm.session()
    session.append(user("the hen"))
    assert session.token_ids == llm.chat_ids(user("the hen"))
    for i in range(3):
        before, history = session.messages, len(session)
        same_as_fresh(session, fresh, replace(PARAMS, seed=i))
        said = session.messages[-1]
        assert session.messages == (*before, said) and said["role"] == "assistant"
        history = len(session)
        kept = session.token_ids
        session.append(user(f"go on {i}"))
        assert session.token_ids[:history] == kept
        assert session.token_ids[history:] == llm.tokenizer.encode(
            f"<|end|>\n<|start|>user\ngo on {i}<|end|>\n<|start|>assistant\n", add_special=False
        )
        assert llm.tokenizer.encode(llm._render(session.messages), add_special=False) != session.token_ids
        fork = session.fork()
        assert same_as_fresh(fork, fresh) == full(history)


def test_a_template_that_rewrites_history_decides(llm: LLM) -> None:
    """Thinking is left out of earlier answers, as some templates do: from there on it is encoded again."""

    def conversation(shown: str, said: str) -> Session:
        llm.tokenizer.chat_template = (
            "{% for m in messages %}[{{ " + shown + " }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
        )
        session = llm.session()
        session.append(user("hen"))
        session._history = session._history.with_answer(
            [*map(llm.tokenizer.encode(said).__getitem__, range(3)), 9], said
        )
        return session

    session = conversation("m['content'].split('</think>')[-1]", "it is</think>a hen")
    answered = session.mark()
    session.append(user("why"))
    assert session.token_ids == llm.tokenizer.encode("[hen][a hen][why][")
    session.rollback(answered)
    assert session.token_ids[-1] == 9 and len(session.messages) == 2
    session = conversation("m['content'] | trim", "\n a hen\n")
    kept = session.token_ids
    session.append(user("why"))
    assert session.token_ids == [*kept, *llm.tokenizer.encode("][why][")]  # for spaces nothing is encoded again


def test_a_conversation_is_cut_inside_answers_only(llm: LLM, fresh: LLM) -> None:
    session = llm.session()
    session.append(user("the hen on the stone"))
    asked = len(session)
    session.generate(PARAMS)
    session.rollback(30)
    assert len(session) == asked + 10
    assert session.messages[-1]["content"] == llm.tokenizer.decode(session.token_ids[asked:], continues=True)
    same_as_fresh(session, fresh)  # goes on with the answer
    assert len(session.messages) == 2
    assert session.messages[-1]["content"] == llm.tokenizer.decode(session.token_ids[asked:], continues=True)
    session.append(user("and"))
    with pytest.raises(UsageError, match=f"roll back to {asked + 50} or {len(session)} tokens"):
        session.rollback(2)
    session.rollback(len(session) - asked - 50)
    assert len(session.messages) == 2
    session.rollback(50)
    assert [message["role"] for message in session.messages] == ["user"]
    session.rollback(asked)
    assert session.messages == () and not session.token_ids


def test_a_stopped_answer_is_kept(llm: LLM, fresh: LLM) -> None:
    session = llm.session()
    session.append(user("the hen"))
    asked = session.mark()
    whole = session.generate(PARAMS).outputs[0]
    session.rollback(asked)
    chunks = []
    for chunk in session.stream(PARAMS):
        chunks.append(chunk)
        if len(chunks) == 7:
            session.stop()
    assert chunks[-1].finish_reason == "abort" and chunks[-1].token_id is None
    assert tuple(chunk.token_id for chunk in chunks[:-1]) == whole.token_ids[:7]
    assert session.messages[-1]["content"] == "".join(chunk.text for chunk in chunks)
    assert not llm.engine.has_work
    session.append(user("and"))
    same_as_fresh(session, fresh)
    session.rollback(asked)
    for _ in session.stream(PARAMS):  # leaving the loop is as good
        break
    assert session.token_ids[asked.length :] == [whole.token_ids[0]]
    session.rollback(asked)
    stream = session.stream(PARAMS)
    next(stream)
    for refused in (session.fork, lambda: session.append(user("x")), lambda: session.rollback(1), session.generate):
        with pytest.raises(UsageError, match="is answering"):
            refused()
    stream.close()


def test_stopped_while_the_prompt_is_read(folder: Path) -> None:
    with LLM(folder, kv_cache_memory_bytes=8 << 20, max_num_batched_tokens=16) as llm:
        session = llm.session()
        session.append("the hen " * 60)
        before, forward = session.token_ids, llm.engine.runner.forward
        steps = 0

        def stopping(pieces: list) -> np.ndarray:  # type: ignore[type-arg]
            nonlocal steps
            steps += 1
            session.stop()
            return forward(pieces)

        llm.engine.runner.forward = stopping  # type: ignore[method-assign]
        output = session.generate(PARAMS)
        assert (steps, output.outputs[0].finish_reason, output.outputs[0].token_ids) == (1, "abort", ())
        assert session.token_ids == before


def test_end_tokens_and_stop_strings_are_not_history(llm: LLM) -> None:
    session = llm.session()
    session.append("the hen")
    start = session.mark()
    plain = session.generate(PARAMS).outputs[0]
    session.rollback(start)
    ended = session.generate(replace(PARAMS, stop_token_ids=[plain.token_ids[9]])).outputs[0]
    place = plain.token_ids.index(plain.token_ids[9])
    assert ended.finish_reason == "stop" and len(ended.token_ids) == place + 1
    assert session.token_ids[start.length :] == list(plain.token_ids[:place])
    session.rollback(start)
    stop = plain.text[12:14]
    cut = session.generate(replace(PARAMS, stop=stop)).outputs[0]
    kept = session.token_ids[start.length :]
    assert llm.tokenizer.decode(kept, continues=True) == cut.text == plain.text[: plain.text.find(stop)]


def test_what_cannot_be_meant(llm: LLM, fresh: LLM) -> None:
    session = llm.session()
    assert session.name == "session-1" and llm.session().name == "session-2"
    session.append("the hen")
    with pytest.raises(UsageError, match="plain text"):
        session.append(user("the hen"))
    with pytest.raises(RequestError, match="token id 300"):
        session.append([300])
    with pytest.raises(UsageError, match="cannot be appended"):
        session.append([1.5])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="cannot roll back 99 tokens"):
        session.rollback(99)
    with pytest.raises(UsageError, match="another LLM"):
        session.rollback(fresh.session().mark())
    with pytest.raises(UsageError, match="one answer"):
        session.generate(SamplingParams(n=2))
    chat = llm.session()
    chat.append(user("the hen"))
    with pytest.raises(UsageError, match="is a conversation"):
        chat.append("more")
    chat.close()
    chat.close()
    with pytest.raises(UsageError, match="is closed"):
        chat.append("more")
    llm.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        llm.session().append(user("the hen"))


def test_a_salt_is_kept_by_forks_and_finds_only_its_own(llm: LLM) -> None:
    text = "the hen on the stone " * 4
    llm.generate(text, PARAMS)
    one, other = llm.session(cache_salt="mine"), llm.session(cache_salt="other")
    for session in (one, other):
        session.append(text)
    assert one.generate(PARAMS).metrics.reuse.reason == "salt"
    assert one.fork().generate(PARAMS).metrics.cached_tokens > 16
    assert other.generate(PARAMS).metrics.reuse.reason == "salt"
    with pytest.raises(UsageError, match="cache_salt"):
        llm.session(cache_salt="")


def test_requests_one_after_another_are_answered_together_and_in_order(llm: LLM, folder: Path) -> None:
    requests = [([3 + i] * (i % 40 + 1), replace(PARAMS, seed=i, max_tokens=1 + i * 7 % 23)) for i in range(60)]
    asked = []
    with LLM(folder, kv_cache_memory_bytes=8 << 20, max_num_seqs=4) as few:
        for i, output in enumerate(few.generate_each((asked.append(1), one)[1] for one in requests)):
            assert len(asked) <= i + 16
            assert output.prompt_token_ids == requests[i][0]
            assert output.outputs == llm.generate([requests[i][0]], requests[i][1])[0].outputs
        assert i == 59 and few.engine.steps < sum(params.max_tokens or 0 for _, params in requests) // 3
        leaving = few.generate_each(iter(requests))
        next(leaving)
        leaving.close()
        assert not few.engine.has_work
