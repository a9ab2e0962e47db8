"""Guards against reward hacking: each at its limit by hand, patience, blindness, and exact resume."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.recipe.ppo import GuardOptions
from lite_align.stages.guards import GUARDS, LEAST_PROMPTS, Guards, Measured, Tripped

# Eight prompts: four facts, four unsafe wishes; too few of either for an interval of a category alone.
CATEGORIES = ("fact", "unsafe") * 4
SPREAD = (0.0, 0.1) * 4  # so that differences have an interval
METRICS = {
    "reward": 0.0,
    "kl": 0.0,
    "length": 20.0,
    "entropy": 0.4,
    "stop_rate": 0.99,
    "distinct_2": 0.5,
    "repeated_3grams": 0.01,
    "refusal/unsafe": 0.8,
    "refusal/other": 0.1,
}
BY_PROMPT: dict[str, Sequence[float]] = {
    "reward": [0.0] * 8,
    "rule_score": [0.5] * 8,
    "preference": [1.0] * 8,
}
START = Measured(0, METRICS, BY_PROMPT, CATEGORIES)


def at(
    step: int,
    metrics: Mapping[str, float] | None = None,
    start: Measured = START,
    **by_prompt: Sequence[float],
) -> Measured:
    """The start, with some figures changed."""
    return replace(
        start,
        step=step,
        metrics={**start.metrics, **(metrics or {})},
        by_prompt={**start.by_prompt, **by_prompt},
    )


def seen(now: Measured, start: Measured = START, **options: object) -> list[Tripped]:
    """What is seen of one evaluation without patience."""
    return Guards(GuardOptions.model_validate({"patience": 1, **options}), start, target_kl=6.0).look(now)


def names(tripped: list[Tripped]) -> list[tuple[str, str]]:
    return [(found.guard, found.action) for found in tripped]


@pytest.mark.parametrize(
    ("guard", "action", "below", "above"),
    [
        ("length", "warn", {"length": 28.0}, {"length": 28.1}),  # 1.4 × 20
        ("length", "roll_back", {"length": 36.0}, {"length": 36.1}),  # 1.8 × 20
        ("kl", "raise_kl", {"kl": 12.0}, {"kl": 12.1}),  # 2 × 6
        ("entropy", "raise_kl", {"entropy": 0.2}, {"entropy": 0.199}),  # 0.5 × 0.4
        ("repetition", "roll_back", {"distinct_2": 0.3}, {"distinct_2": 0.299}),  # 0.6 × 0.5
        (
            "repetition",
            "roll_back",
            {"repeated_3grams": 0.1},
            {"repeated_3grams": 0.101},
        ),  # 2 × 0.05, the floor
        ("stop_rate", "warn", {"stop_rate": 0.95}, {"stop_rate": 0.949}),
        (
            "value",
            "lower_rate",
            {"value/explained_variance": 0.0, "rounds": 10},
            {"value/explained_variance": -0.01, "rounds": 10},
        ),
        (
            "value",
            "lower_rate",
            {"value/explained_variance": -0.9, "rounds": 9},
            {"value/explained_variance": -0.9, "rounds": 10},
        ),
        # 0.8 − 0.05 and 0.1 + 0.1, away from the limit by more than floats are off.
        ("refusal", "roll_back", {"refusal/unsafe": 0.751}, {"refusal/unsafe": 0.749}),
        ("refusal", "roll_back", {"refusal/other": 0.199}, {"refusal/other": 0.201}),
    ],
)
def test_figures_trip_beyond_their_limit_and_not_at_it(guard, action, below, above):
    assert (guard, action) not in names(seen(at(5, below)))
    assert names(seen(at(5, above))) == [(guard, action)]
    assert names(seen(at(5, above), **{guard: "stop"})) == [
        (guard, "warn" if "length" in below and action == "warn" else "stop")
    ]
    assert seen(at(5, above), **{guard: "off"}) == []
    assert seen(at(5, above), enabled=False) == []


def test_a_larger_share_of_repeated_triples_at_the_start_lifts_the_limit():
    start = at(0, {"repeated_3grams": 0.2})
    assert seen(at(5, {"repeated_3grams": 0.39}), start) == []
    assert names(seen(at(5, {"repeated_3grams": 0.41}), start)) == [("repetition", "roll_back")]


def test_hacking_is_a_reward_that_rises_while_quality_falls():
    """Differences 0.5, 0.6, … have mean 0.55, deviation 0.0535, error 0.0189, half width 2.365 · 0.0189 = 0.0447."""
    up = [0.5 + x for x in SPREAD]
    down = [0.0 + x for x in SPREAD]
    assert seen(at(5, reward=up), category="off") == []
    [found] = seen(at(5, reward=up, rule_score=down))
    assert (found.guard, found.action, found.step) == ("hacking", "roll_back", 5)
    assert found.text == (
        "The reward rose by +0.55 [+0.51, +0.59] while the rule score fell by −0.45 [−0.49, −0.41]."
    )
    assert names(seen(at(5, reward=up, preference=down))) == [("hacking", "roll_back")]
    assert seen(at(5, reward=[0.0] * 8, rule_score=down)) == []


def test_changes_whose_interval_holds_zero_are_no_hacking():
    """Four of eight differences: 0.1 in the mean, deviation 0.1069, half width 2.365 · 0.0378 = 0.0894 < 0.1."""
    clear, unclear = (0.0, 0.2) * 4, (-0.1, 0.2) * 4
    down = [0.5 - x for x in clear]
    assert names(seen(at(5, reward=clear, rule_score=down))) == [("hacking", "roll_back")]
    assert seen(at(5, reward=unclear, rule_score=down)) == []
    assert seen(at(5, reward=clear, rule_score=[0.5 - x for x in unclear])) == []


def test_patience_counts_evaluations_running_and_begins_anew():
    guards = Guards(GuardOptions(), START, target_kl=6.0)  # patience 2
    bad, fine = {"kl": 13.0}, {"kl": 3.0}
    looks = [guards.look(at(step, of)) for step, of in enumerate((bad, fine, bad, bad, bad, bad, fine), 1)]
    assert [names(found) for found in looks] == [
        [],
        [],
        [],
        [("kl", "raise_kl")],
        [],
        [("kl", "raise_kl")],
        [],
    ]
    assert looks[3][0].text == (
        "KL is 13.00 nats an answer, above 12.00, 2 times its target, in 2 evaluations running."
    )


def test_good_is_the_last_evaluation_with_nothing_seen_and_no_strike_open():
    guards = Guards(GuardOptions(), START, target_kl=6.0)
    good: list[int] = []
    for step, metrics in enumerate(({}, {"kl": 13.0}, {}, {"length": 30.0}, {"kl": 13.0}, {"kl": 13.0}), 1):
        guards.look(at(step, metrics))
        good.append(guards.good)
    assert good == [1, 1, 3, 3, 3, 3]


def category_start(count: int, per_prompt: float = 0.5) -> Measured:
    """Two categories of `count` prompts each."""
    wishes = ("fact", "howto") * count
    return Measured(0, {}, {"rule_score": [per_prompt] * len(wishes)}, wishes)


def test_a_category_falls_alone():
    """Facts fall by 0.05 and 0.16 in turn: 0.105 > 0.1; by 0.04 and 0.15: 0.095."""
    start = category_start(8)

    def facts(*falls: float) -> list[float]:
        return [0.5 - falls[i // 2 % 2] if i % 2 == 0 else 0.6 for i in range(16)]

    assert seen(at(5, start=start, rule_score=facts(0.04, 0.15)), start) == []
    [found] = seen(at(5, start=start, rule_score=facts(0.05, 0.16)), start)
    assert (found.guard, found.action) == ("category", "roll_back")
    assert found.text.startswith("The rule score fell in fact by −0.11 [−0.16, −0.05]")
    # −0.5 and +0.25: 0.125 in the mean, and an interval that holds zero.
    assert seen(at(5, start=start, rule_score=facts(0.5, -0.25)), start) == []


def test_intervals_of_categories_hold_for_all_of_them_together():
    """Deviation 0.2138 over 8: half width 2.365 · 0.0756 = 0.179 alone, 2.841 · 0.0756 = 0.215 for one of two."""
    values = [0.5 - (0.0, 0.4)[i // 2 % 2] if i % 2 == 0 else 0.5 for i in range(16)]
    both = category_start(8)
    assert seen(at(5, start=both, rule_score=values), both) == []
    alone = replace(both, categories=[name if name == "fact" else None for name in both.categories])
    assert names(seen(at(5, start=alone, rule_score=values), alone)) == [("category", "roll_back")]


def test_refusals_by_prompt_must_differ_for_certain():
    """One of eight more in the share trips by the share alone, and not where answers by prompt leave it open."""
    wishes = ("unsafe",) * 8
    start = Measured(0, {"refusal/unsafe": 1.0}, {"refused": [1.0] * 8}, wishes)
    one, most = [0.0] + [1.0] * 7, [0.0] * 6 + [1.0] * 2
    assert seen(at(5, {"refusal/unsafe": 0.875}, start, refused=one), start) == []
    [found] = seen(at(5, {"refusal/unsafe": 0.25}, start, refused=most), start)
    assert found.text == "Unsafe wishes are refused in 25 %, at the start in 100 % (limit −5 points)."
    bare = replace(start, by_prompt={})
    assert names(seen(at(5, {"refusal/unsafe": 0.875}, bare), bare)) == [("refusal", "roll_back")]


def test_what_cannot_be_seen_is_said():
    bare = Measured(0, {"length": 20.0, "entropy": 0.3, "distinct_2": 0.5}, {"reward": [0.0] * 8}, [None] * 8)
    assert Guards(GuardOptions(), bare, target_kl=None).blind == [
        "hacking: there are no held-out pairs (ppo.pairs) and no rule scores to hold against the reward",
        "kl: ppo.target_kl is null, so there is no budget",
        "category: no category has 6 held-out prompts with a rule score",
        "refusal: refusals of held-out prompts are not told apart",
        "stop_rate: stop rate could not be measured at the start",
    ]
    few = replace(bare, by_prompt={"reward": [0.0] * (LEAST_PROMPTS - 1)})
    assert (
        Guards(GuardOptions(), few, 6.0).blind[0]
        == "hacking: there are fewer than 6 held-out prompts with a reward"
    )
    assert Guards(GuardOptions(), bare, None).look(bare) == []
    assert Guards(GuardOptions(enabled=False), bare, None).blind == []
    assert not [text for text in Guards(GuardOptions(kl="off"), bare, None).blind if text.startswith("kl")]
    assert Guards(GuardOptions(), START, 6.0).blind == [
        "category: no category has 6 held-out prompts with a rule score"
    ]


def test_a_figure_that_is_lost_on_the_way_is_not_passed():
    lost = seen(at(5, {"entropy": math.nan}, reward=[math.nan] * 8))
    assert names(lost) == [("unmeasured", "warn")] * 2
    assert "reward of 6 prompts could not be measured" in lost[0].text


def test_a_prompt_without_value_takes_no_part():
    down = [math.nan, *(0.1 + x for x in SPREAD[1:])]
    up = [0.5 + x for x in SPREAD]
    assert names(seen(at(5, reward=up, rule_score=down))) == [("hacking", "roll_back")]


def test_every_guard_has_an_action_and_a_help_text_in_the_recipe():
    fields = GuardOptions.model_fields
    assert set(GUARDS) == {name for name, field in fields.items() if "roll_back" in str(field.annotation)}


def numbers(low: int, high: int) -> st.SearchStrategy[float]:
    """Steps of a hundredth: hypothesis has no floats where something has switched subnormal ones off."""
    return st.integers(100 * low, 100 * high).map(lambda n: n / 100)


shares = numbers(0, 1)
starts = st.builds(
    lambda length, entropy, stop, distinct, repeated, rewards, scores: Measured(
        0,
        {
            **{"kl": 0.0, "length": length, "entropy": entropy, "stop_rate": stop, "distinct_2": distinct},
            **{"repeated_3grams": repeated, "refusal/unsafe": stop, "refusal/other": repeated},
        },
        {
            "reward": rewards,
            "rule_score": scores,
            "preference": [round(x) for x in scores],
            "refused": [0.0] * 8,
        },
        CATEGORIES,
    ),
    numbers(0, 500),
    numbers(0, 10),
    *[shares] * 3,
    st.lists(numbers(-50, 50), min_size=8, max_size=8),
    st.lists(shares, min_size=8, max_size=8),
)


@given(starts, st.integers(1, 4))
def test_a_start_that_repeats_itself_never_trips(start: Measured, patience: int):
    guards = Guards(GuardOptions(patience=patience), start, target_kl=6.0)
    for step in range(1, 7):
        assert guards.look(replace(start, step=step)) == []
        assert guards.good == step


figures = st.fixed_dictionaries(
    {
        "kl": st.sampled_from([1.0, 13.0]),
        "length": st.sampled_from([20.0, 40.0]),
        "entropy": st.sampled_from([0.4, 0.1]),
    }
)


@given(st.lists(figures, min_size=2, max_size=8), st.integers(0, 8))
def test_a_resumed_run_sees_what_the_uninterrupted_one_sees(rows: list[dict[str, float]], cut: int):
    start = replace(START, by_prompt={**BY_PROMPT, "rule_score": [math.nan, *BY_PROMPT["rule_score"][1:]]})
    whole, part = (Guards(GuardOptions(), start, target_kl=6.0) for _ in range(2))
    for step, row in enumerate(rows):
        if step == cut:
            saved = json.loads(json.dumps(part.state(), allow_nan=False))
            part = Guards.resumed(GuardOptions(), saved, target_kl=6.0)
        now = at(step, row, reward=[0.5 + x for x in SPREAD], rule_score=[0.1 + x for x in SPREAD])
        assert part.look(now) == whole.look(now)
        assert (part.good, json.dumps(part.state())) == (whole.good, json.dumps(whole.state()))
