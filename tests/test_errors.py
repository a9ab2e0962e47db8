import pytest

from lite_align import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.LiteAlignError("x"), 1),
        (errors.DataError("x"), 2),
        (errors.RecipeError("x"), 2),
        (errors.ModelError("x"), 2),
        (errors.DriftError("x"), 2),
        (errors.GateFailed("x"), 3),
        (errors.RunInUse("x"), 73),
        (errors.DiskFull("x"), 74),
        (errors.DeviceLost("x"), 75),
        (errors.Interrupted("x", signal_number=2), 130),
        (errors.Interrupted("x", signal_number=15), 143),
    ],
)
def test_exit_codes_are_those_of_the_contract(error, code):
    assert error.exit_code == code


def test_the_text_is_what_where_and_what_to_do():
    error = errors.DataError("2 rows are bad", details=["a:1 empty", "a:7 empty"], remedy="Mend them.")
    assert str(error) == "2 rows are bad\na:1 empty\na:7 empty\nMend them."
    assert str(errors.DataError("bad")) == "bad"
