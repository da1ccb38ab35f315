"""What eviction costs: the first half of a document is compressed, its second half measured; keys asked for behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvist import LLM
from kvist.errors import UsageError
from kvist.eval.evaluate import Evaluation
from kvist.eval.force import CHUNK, force
from kvist.eval.method import REFERENCE, Method, names
from kvist.eval.passkey import ANSWER, answer
from kvist.eval.plan import QUICK
from kvist.eval.report import Report, Result
from kvist.eval.scores import Scores
from kvist.eval.store import Store
from kvist.eval.text import Document

RULE = "evict:0.5,by=knorm"


def test_the_second_half_is_measured(long: LLM) -> None:
    random = np.random.default_rng(5)
    texts = [Document("r", f"{n}", tuple(random.integers(2, 300, n + 1).tolist())) for n in (900, 301, 700)]
    sizes = {"max_num_seqs": 3, "enable_prefix_caching": False, "max_num_batched_tokens": CHUNK * 3}
    with (
        long,
        REFERENCE.engine(long, **sizes) as truth,
        Method("f32").engine(long, **sizes) as full,
        Method("f32", RULE).engine(long, **sizes) as evicting,
    ):
        plain, scores = force(truth, [full, evicting], texts)
        assert evicting.evictor is not None and not evicting.manager.tables
    assert [(one.first, one.positions) for one in scores] == [(450, 450), (150, 151), (350, 350)]
    for document, one, other in zip(texts, scores, plain, strict=True):
        assert np.array_equal(one.reference, other.reference[one.first :])
        short = document.positions < 514
        assert np.array_equal(one.own, other.own[one.first :]) == short, "only long ones lose anything"
        assert one.live_bytes == other.live_bytes if short else one.live_bytes < other.live_bytes
    assert Scores.from_json(scores[0].as_json()).first == 450
    none = np.empty((0, 1))  # no steps were timed
    results = [Result(REFERENCE, 1, 1, plain, [], none), Result(Method("f32", RULE), 1, 1, scores, [], none)]
    found = Report({}, texts, results, []).as_json()["methods"]
    assert found[0]["perplexity_change"] == 0 and found[1]["perplexity_change"] != 0
    assert [one["from"] for one in found[1]["by_position"]] == [150, 256, 512]
    assert sum(one["positions"] for one in found[1]["by_position"]) == found[1]["positions"] == 951


def test_the_question_comes_when_the_context_is_compressed(long: LLM) -> None:
    random = np.random.default_rng(6)
    context, question = random.integers(2, 300, 500).tolist(), [5, 6, 7]
    with long, Method("f32", RULE).engine(long) as evicting, Method("f32").engine(long) as full:
        found = answer(evicting, context, question, 64)
        assert found == answer(evicting, context, question, 500) and len(found) == ANSWER
        assert evicting.evictor is not None
        kept = evicting.evictor.kept([*context, 5])
        assert kept is not None and len(kept.tokens) == 500, "no token of the question"
        assert evicting.manager.match(kept.slot_tokens(context), kept=kept).cached == 256
        assert found != answer(full, context, question, 64)
        for match in list(evicting.manager.matches):
            match.release()


def test_documents_that_are_too_short(long: LLM, tmp_path: Path) -> None:
    with long, Store() as store, pytest.raises(UsageError, match=f"first half of {QUICK.tokens} tokens as it is: give"):
        Evaluation(long, tmp_path, [REFERENCE, Method("f32", RULE)], QUICK, store, lambda *_: None)


def test_policies_are_separated_by_commas_and_have_some() -> None:
    assert names("full, evict:0.5,by=kvzip,window:64+4") == ["full", "evict:0.5,by=kvzip", "window:64+4"]
