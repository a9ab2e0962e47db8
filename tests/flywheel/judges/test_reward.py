"""A reward run as judge: differences of its scores, each answer and each prompt computed once."""

import math

import pytest

from benchmarks.injections import INJECTIONS
from lite_align.data.render import Renderer
from lite_align.data.types import Message, Rendered
from lite_align.data.votes import Comparison
from lite_align.flywheel.judges.judgement import swapped
from lite_align.flywheel.judges.reward import RewardJudge, sigmoid
from lite_align.model.backbone import Role
from lite_align.stages.scorer import Scorer
from lite_align.train.faults import TokenBudget
from lite_align.train.finished import read_finished
from tests import finished
from tests.stages.test_scorer import reward_run

PROMPT = (Message("system", "Be kind."), Message("user", "hello world"))


def comparison(a, b, prompt=PROMPT):
    return Comparison(prompt=prompt, a=a, b=b)


@pytest.fixture(scope="module", params=[None, "the answer asks?"])
def made(request, tmp_path_factory, tiny_llama):
    """A reward run, a judge of it, and a scorer that reads one answer at a time."""
    folder = tmp_path_factory.mktemp("runs")
    policy = read_finished(finished.run(folder / "policy", tiny_llama))
    reward_run(folder / "my-reward", tiny_llama, judge_suffix=request.param)
    run = read_finished(folder / "my-reward")
    backbone = policy.backbone("cpu")
    renderer = Renderer(backbone.loaded.tokenizer)
    judge = RewardJudge(run, backbone, renderer, TokenBudget(256), 512)
    return judge, Scorer(policy.backbone("cpu"), run)


def test_a_preference_is_the_difference_of_the_scores(made):
    judge, score = made
    items = [
        comparison("the fox", "a lazy dog answers"),
        comparison("the fox", "hello"),
        comparison("a", "a"),
    ]
    told = []
    found = judge.judge(items, told.append)
    for one, own in zip(items, found, strict=True):
        gap = score(PROMPT, one.a).raw - score(PROMPT, one.b).raw
        assert own.preference == pytest.approx(1 / (1 + math.exp(-gap)), abs=1e-4)
        assert own.said is None
        assert own.choice == ("tie" if abs(own.preference - 0.5) <= 0.02 else "a" if gap > 0 else "b")
    assert found[2].choice == "tie"
    assert sum(told) == 3
    turned = judge.judge([swapped(one) for one in items])
    assert [one.preference for one in turned] == pytest.approx([1 - one.preference for one in found])


def test_a_prompt_is_read_once_for_all_its_answers(made, monkeypatch):
    judge, _ = made
    asked = []
    monkeypatch.setattr(
        "lite_align.flywheel.judges.reward.scoring.score",
        lambda backbone, prompts, budget: asked.extend(prompts) or [[0.0] * len(ids) for _, ids in prompts],
    )
    other = (Message("user", "another question"),)
    before = judge._tokens
    judge.judge([comparison("x", "y"), comparison("x", "z"), comparison("x", "y", other)])
    assert [len(ids) for _, ids in asked] == [3, 2]
    prompt, answers = asked[0]
    assert len({ids[:prompt] for ids in answers}) == 1
    counted = sum(size + sum(len(one) - size for one in ids) for size, ids in asked)
    assert judge._tokens - before == counted
    assert judge.tell() == [f"{judge._tokens:,} tokens read"]


def test_an_empty_answer_has_a_score_of_its_own(made):
    judge, _ = made
    (empty,) = judge._sequences([(PROMPT, " ")])
    (full,) = judge._sequences([(PROMPT, "An answer")])
    assert isinstance(empty, Rendered)
    first = full.trained.index(True)
    assert empty.ids[:first] == full.ids[:first]
    assert full.ids[first:][-(len(empty.ids) - first) :] == empty.ids[first:]
    assert len(empty.ids) < len(full.ids)
    (found,) = judge.judge([comparison("", "the fox")])
    assert found.problem is None


def test_what_is_too_long_is_a_tie_with_a_problem(made):
    judge, _ = made
    first, second = judge.judge([comparison("fox " * 600, "b"), comparison("a", "b")])
    assert (first.choice, first.preference) == ("tie", None)
    assert first.problem is not None
    assert first.problem.startswith("too long: ")
    assert second.problem is None


def test_control_tokens_in_an_answer_are_text(made):
    judge, _ = made
    control = set(judge._renderer.tokenizer.all_special_ids)
    plain, *hostile = judge._sequences([(PROMPT, "hi"), *((PROMPT, f"hi {text}") for text in INJECTIONS)])
    assert all(isinstance(one, Rendered) for one in hostile)
    assert {sum(token in control for token in one.ids) for one in hostile} == {
        sum(token in control for token in plain.ids)
    }


def test_the_name_follows_the_adapter(made, tmp_path, tiny_llama):
    judge, _ = made
    kind, name, digest = judge.name.split()
    assert (kind, name, len(digest)) == ("reward", "my-reward", 8)
    assert (judge.kind, judge.rubric) == ("reward", None)
    assert judge._backbone.has(Role.REWARD)


def test_sigmoid_does_not_overflow():
    assert sigmoid(0.0) == 0.5
    assert sigmoid(2.0) + sigmoid(-2.0) == pytest.approx(1.0)
    assert sigmoid(1000.0) == 1.0
    assert sigmoid(-1000.0) == 0.0
