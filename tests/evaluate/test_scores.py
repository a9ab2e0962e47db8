"""Figures of a reward model's held-out rows, by hand."""

import math

import pytest

from lite_align.evaluate.findings import by_category
from lite_align.evaluate.scores import measure, measured


def row(chosen: float, rejected: float, tokens: tuple[int, int] = (10, 10), **more) -> dict:
    lengths = {"chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}
    return {"chosen_reward": chosen, "rejected_reward": rejected, **lengths, **more}


def test_accuracy_beside_the_longer_answer():
    """Right, right, wrong, tie: 2.5 of 4. Longer is better in the first and the third, shorter in the second."""
    rows = [row(2, 1, (9, 5)), row(1, 0, (3, 8)), row(0, 1, (7, 6)), row(1, 1)]
    found = measure(rows)
    assert (found.count, found.accuracy.value, found.longer.value) == (4, 0.625, 0.625)
    # The second comparison speaks for the scores, the third for the length: as even as can be.
    assert found.against_longer == 1.0


def test_a_model_that_beats_the_longer_answer():
    """Eight comparisons in which the model alone is right: p = 2/2⁸."""
    assert measure([row(1, 0, (4, 5))] * 8).against_longer == pytest.approx(2 / 256)


def test_negative_log_likelihood_and_calibration_by_hand():
    """Gaps ln 3 and −ln 3: −ln 0.75 and −ln 0.25; a confidence of 0.75 that is right half of the time."""
    found = measure([row(math.log(3), 0), row(0, math.log(3))])
    assert found.nll == pytest.approx((0.287682 + 1.386294) / 2, abs=1e-6)
    assert found.calibration_error == pytest.approx(0.25)
    assert [b.count for b in found.reliability] == [2]


def test_scores_far_apart_do_not_overflow():
    assert measure([row(0, 1e5)]).nll == 1e5


def test_an_answer_counts_once_for_the_correlation_however_often_it_is_compared():
    """Three answers of 1, 2 and 6 tokens with rewards 1, 2, 3, in all their comparisons."""
    tokens, reward = {0: 1, 1: 2, 2: 6}, {0: 1.0, 1: 2.0, 2: 3.0}
    rows = [
        row(reward[a], reward[b], (tokens[a], tokens[b]), answers=[a, b]) for a, b in ((2, 1), (2, 0), (1, 0))
    ]
    found = measure(rows).length
    assert found is not None
    assert (found.count, found.pearson, found.spearman) == pytest.approx((3, 5 / math.sqrt(28), 1.0))


def test_swaps_and_probes_count_the_prompts_that_have_them():
    rows = [
        row(1, 0, swaps={"same": 0.5, "other": 2.0}, probes={"empty": 0.0, "truncated": 1.0}),
        row(1, 0, swaps={"same": 0.0, "other": None}, probes={"empty": -1.0}),
        row(1, 0),
    ]
    found = measure(rows)
    assert {kind: (i.value, i.count) for kind, i in found.swaps.items()} == {
        "same": (1.0, 2),
        "other": (0.0, 1),
    }
    assert {kind: (i.value, i.count) for kind, i in found.probes.items()} == {
        "empty": (1.0, 2),
        "truncated": (0.5, 1),
    }


def test_categories_are_measured_alone():
    rows = [row(1, 0, category="fact"), row(0, 1, category="unsafe"), row(1, 0)]
    assert {name: found.accuracy.value for name, found in by_category(rows, measure).items()} == {
        "fact": 1.0,
        "unsafe": 0.0,
        "without category": 1.0,
    }
    assert by_category(rows[:1], measure) == {}


def test_rows_of_another_kind_are_left_out():
    assert measured([row(1, 0), {"chosen_reward": 1.0}, {"before": {}}, row(math.inf, 0)]) == [row(1, 0)]
