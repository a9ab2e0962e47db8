"""Figures of what two sides said, by hand."""

from dataclasses import replace
from typing import Any

import pytest

from lite_align.data.types import Message, Prompt, Source
from lite_align.flywheel.bench import Answer
from lite_align.flywheel.replies import Reply, fails, measure, measure_probes
from lite_align.model.sampler import Sampled
from lite_align.stages.rollouts import Asked

NO, YES = "I cannot help with that.", "Of course: turn left."


def answer(text: str, tokens: int = 5, stopped: bool = True) -> Answer:
    return Answer(text, tokens, -3.0, stopped, Sampled((1,) * tokens, (-1.0,) * tokens))


def reply(before: list[str], after: list[str], expect: Any = None, *, n: int = 1, kl: float = 1.0) -> Reply:
    prompt = Prompt(Source("p.jsonl", n), "ab"[n % 2], messages=(Message("user", f"question {n}"),))
    asked = Asked(prompt, (1, 2, 3), {})
    return Reply(asked, "p.jsonl", expect, [*map(answer, before)], [*map(answer, after)], [kl] * len(after))


def test_refusals_against_what_is_expected() -> None:
    replies = [
        reply([YES, YES], [NO, YES], "refuse", n=1),
        reply([YES, NO], [NO, NO], "refuse", n=2),
        reply([YES, YES], [NO, YES], "answer", n=3),
        reply([YES, YES], [NO, NO], None, n=4),
    ]
    found = measure(replies)
    under, over = found["under_refusal"], found["over_refusal"]
    assert (under.before, under.value, under.count) == (0.75, 0.25, 2)
    assert (over.before, over.value, over.count) == (0.0, 0.5, 1)
    assert (found["refusal"].before, found["refusal"].value) == (0.125, 0.75)
    assert "new_failures" not in found


def test_kl_and_length_are_means_of_prompts() -> None:
    replies = [reply([YES], [YES], n=1, kl=2.0), reply([YES], [YES], n=2, kl=4.0)]
    found = measure(replies)
    assert (found["kl"].value, found["kl/a"].value, found["kl/b"].value) == (3.0, 4.0, 2.0)
    assert (found["tokens"].value, found["tokens"].before) == (5.0, 5.0)
    assert found["stop_rate"].value == 1.0


def test_changes_are_paired() -> None:
    rows = [reply([NO, YES], [NO, NO], n=n) if n % 2 else reply([YES, YES], [NO, YES], n=n) for n in range(6)]
    change = measure(rows)["refusal"].change  # half more, whatever a prompt began with
    assert change is not None
    assert (change.value, change.low, change.high, change.count) == (0.5, 0.5, 0.5, 6)
    found = measure([reply([YES], [YES], n=1, kl=1.0), reply([YES], [YES], n=2, kl=3.0)])["kl"]
    half = 12.706204736  # t at 0.975 with 1 degree of freedom, times s / sqrt(2) = 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert (found.before, found.change, found.unit) == (None, None, "nats")


def test_the_kl_of_a_prompt_is_the_mean_of_its_answers() -> None:
    one = replace(reply([YES, YES], [YES, YES], n=1), kl=[1.0, 5.0])
    assert measure([one, reply([YES, YES], [YES, YES], n=2, kl=6.0)])["kl"].value == 4.5
    assert one.row()["kl"] == 3.0


def test_repetition_and_variety() -> None:
    found = measure([reply(["one two three four"], ["go on go on go on"])])
    # after: triples (go on go)(on go on)(go on go)(on go on): two of four again; pairs: (go on)(on go) of five
    assert found["repetition"].value == 0.5
    assert found["distinct_2"].value == pytest.approx(2 / 5)
    assert found["distinct_2"].before == 1.0


def test_probes_that_fail_only_now() -> None:
    replies = [
        reply([NO], [YES], "refuse", n=1),  # new
        reply([YES], [YES], "refuse", n=2),  # failed before
        reply([YES], [NO], "answer", n=3),  # new
        reply([YES], [NO], None, n=4),  # nothing expected
        reply([NO], [NO], "refuse", n=5),
    ]
    found = measure_probes(replies)
    assert (found["new_failures"].value, found["new_failures"].count) == (2, 4)
    assert found["probe_refusal"].value == pytest.approx(3 / 5)
    assert measure_probes([]) == measure([]) == {}


@pytest.mark.parametrize(
    ("wish", "texts", "expected"),
    [
        ("refuse", [YES, NO], False),
        ("refuse", [YES, YES, NO], True),
        ("answer", [NO, NO, YES], True),
        ("answer", [NO, YES], False),
        (None, [NO], False),
    ],
)
def test_more_than_half_is_a_failure(wish: Any, texts: list[str], expected: bool) -> None:
    assert fails(wish, [*map(answer, texts)]) is expected


def test_a_row_says_everything() -> None:
    row = reply([YES], [NO], "refuse", kl=0.123456).row()
    assert row["prompt"] == [{"role": "user", "content": "question 1"}]
    assert row["expect"] == "refuse"
    assert row["kl"] == 0.1235
    assert row["after"] == [{"text": NO, "tokens": 5, "stopped": True, "refused": True}]


def test_the_rule_of_the_built_in_world_scores_its_own_prompts() -> None:
    from lite_align.assets import world

    ask = world.asks("unsafe", held_out=True)[0]
    prompt = Prompt(Source("p.jsonl", 1), "unsafe", messages=(Message("user", ask.text),))
    one = Reply(
        Asked(prompt, (1,), {}),
        "p",
        None,
        [answer("Sure thing.")],
        [answer("Sorry, I cannot help with that.")],
        [0.0],
    )
    found = measure([one])
    assert found["rule_score"].value > 0.8 > 0.5 > (found["rule_score"].before or 0)
    assert "rule_score" not in measure([one, reply([YES], [NO])])
