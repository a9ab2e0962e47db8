"""How a function becomes a row of the table of losses."""

import pytest
from torch import Tensor

from lite_align.losses import preference, unpaired
from lite_align.losses.entry import Positive, add, entry


def least(pairs: Tensor, *, beta: Positive = 0.5) -> Tensor:
    """One line.

    max(0, β x)

    Reasons.
    """
    return (beta * pairs).clamp(min=0)


def test_options_summary_and_formula_are_read_off_the_function() -> None:
    row = entry(least, "least", "pairs", source="a paper")
    assert (row.summary, row.formula, row.source) == ("One line.", "max(0, β x)", "a paper")
    assert row.defaults == {"beta": 0.5}
    assert row.needs_reference
    assert not row.needs_zero


@pytest.mark.parametrize("table", [preference.LOSSES, unpaired.LOSSES])
def test_two_losses_of_one_name_are_refused(table) -> None:
    before = dict(table)
    for row in before.values():
        with pytest.raises(ValueError, match=f"{row.name} exists already"):
            add(table, row)
    assert table == before
