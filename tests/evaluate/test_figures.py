"""Figures over prompts and groups: worked by hand, written and read back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.evaluate import figures
from lite_align.evaluate.figures import Figure
from lite_align.evaluate.statistics import Interval, wilson


def test_groups_are_all_prompts_each_category_and_thirds_by_length() -> None:
    categories = ["b", "a", None] * 10
    lengths = list(range(30, 0, -1))
    found = figures.groups(categories, lengths)
    assert list(found) == ["", "a", "b", "length-short", "length-middle", "length-long"]
    assert found[""] == list(range(30))
    assert found["a"] == list(range(1, 30, 3))
    assert found["length-short"] == list(range(20, 30))
    assert found["length-long"] == list(range(10))


def test_few_prompts_are_not_cut_into_thirds() -> None:
    assert list(figures.groups(["a"] * 29, [1] * 29)) == ["", "a"]


def test_a_share_has_wilsons_interval_and_a_paired_change() -> None:
    places = figures.groups(["a", "a", "b", "b"])
    found = figures.measure(
        "refusal", places, [1, 1, 0, 1], [0, 1, 0, 0], unit="share", better="higher", counted=True
    )
    whole = found["refusal"]
    expected = wilson(3, 4)
    assert (whole.value, whole.count) == (0.75, 4)
    assert (whole.low, whole.high) == pytest.approx((expected.low, expected.high))
    assert whole.before == 0.25
    assert whole.change is not None
    assert whole.change.value == 0.5  # differences 1, 0, 0, 1
    # t of 0.975 with 3 degrees of freedom, 3.182, times sqrt(1/3) / 2
    assert whole.change.high == pytest.approx(0.5 + 3.182446 * math.sqrt(1 / 3) / 2)
    assert (found["refusal/a"].value, found["refusal/b"].value) == (1.0, 0.5)


def test_a_missing_value_counts_nowhere_and_a_change_needs_both() -> None:
    places = figures.groups(["a", "a", "b"])
    found = figures.measure("kl", places, [1.0, 3.0, None], [0.0, None, 5.0])
    assert (found["kl"].value, found["kl"].count, found["kl"].before) == (2.0, 2, 0.0)
    assert found["kl"].change == Interval(1.0, -math.inf, math.inf, 1)
    assert "kl/b" not in found


ends = st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(math.inf)


@given(
    st.builds(
        Figure,
        value=st.floats(-1e6, 1e6, allow_subnormal=False),
        low=ends.map(lambda x: -x),
        high=ends,
        count=st.integers(0, 9),
        unit=st.sampled_from(("", "share", "nats")),
        better=st.sampled_from(("higher", "lower", "")),
        before=st.none() | st.floats(-5, 5, allow_subnormal=False),
        change=st.none() | st.just(Interval(1.0, -math.inf, 2.0, 3)),
    )
)
def test_a_figure_comes_back_from_its_record(figure: Figure) -> None:
    assert Figure.read(json.loads(json.dumps(figure.record(), allow_nan=False))) == figure


def test_skewed_columns_get_skewed_intervals() -> None:
    kl = [0.1] * 30 + [5.0] * 3
    found = figures.measure("kl", {figures.ALL: range(33)}, kl)["kl"]
    assert found.high - found.value > 1.3 * (found.value - found.low)
