"""drift: refused, asked for or free, for every key, and all at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.errors import DriftError
from lite_align.train import drift

CLASSES = {
    "loss.beta": "refuse",
    "loss.options": "refuse",
    "train.learning_rate": "ask",
    "train.max_steps": "ask",
    "train.log_steps": "free",
}
OLD = {
    "loss": {"beta": 0.1, "options": {"margin": 1.0}},
    "train": {"learning_rate": 1e-5, "max_steps": None, "log_steps": 1},
}


def new(**values: object) -> dict[str, dict[str, object]]:
    changed = {block: dict(content) for block, content in OLD.items()}
    for key, value in values.items():
        block, name = key.split("__")
        changed[block][name] = value
    return changed


def test_nothing_changed() -> None:
    assert drift.changes(OLD, new(), CLASSES) == []
    assert drift.accepted([], CLASSES) == []


@pytest.mark.parametrize(
    ("values", "key", "kind", "words"),
    [
        ({"loss__beta": 0.2}, "loss.beta", "refuse", "loss.beta: 0.1 → 0.2"),
        ({"loss__options": {}}, "loss.options", "refuse", 'loss.options: {"margin": 1.0} → {}'),
        ({"train__learning_rate": 2e-5}, "train.learning_rate", "ask", "train.learning_rate: 1e-05 → 2e-05"),
        ({"train__max_steps": 10}, "train.max_steps", "ask", "train.max_steps: null → 10"),
        ({"train__log_steps": 5}, "train.log_steps", "free", "train.log_steps: 1 → 5"),
        ({"train__unheard": 5}, "train.unheard", "refuse", "train.unheard: (absent) → 5"),
    ],
)
def test_each_change_has_the_class_of_its_key(
    values: dict[str, object], key: str, kind: str, words: str
) -> None:
    (change,) = drift.changes(OLD, new(**values), CLASSES)
    assert (change.key, change.kind, str(change)) == (key, kind, words)
    if kind == "free":
        assert drift.accepted([change], CLASSES) == [change]
    else:
        with pytest.raises(DriftError, match="not continue"):
            drift.accepted([change], CLASSES)
    if kind == "ask":
        assert drift.accepted([change], CLASSES, [key]) == [change]
    if kind == "refuse":
        with pytest.raises(DriftError, match=r"this key cannot change|no such key"):
            drift.accepted([change], CLASSES, [key])


def test_all_problems_are_told_at_once_with_the_remedy_of_each_kind() -> None:
    found = drift.changes(OLD, new(loss__beta=0.5, train__learning_rate=1e-4, train__log_steps=9), CLASSES)
    with pytest.raises(DriftError) as caught:
        drift.accepted(found, CLASSES, ["train.max_step"])
    assert caught.value.details == (
        "loss.beta: 0.1 → 0.5 (cannot change)",
        "train.learning_rate: 1e-05 → 0.0001 (not accepted)",
        "--accept-drift train.max_step: no such key; did you mean train.max_steps?",
    )
    assert caught.value.exit_code == 2
    assert "--out" in caught.value.remedy
    assert caught.value.remedy.endswith("--accept-drift train.learning_rate")


def test_a_key_that_went_away_is_a_change() -> None:
    (change,) = drift.changes({"hash": {"data": "ab"}}, {"hash": {}}, {})
    assert (change.kind, str(change)) == ("refuse", 'hash.data: "ab" → (absent)')


def test_values_are_compared_as_they_are_stored() -> None:
    assert drift.changes({"a": [1, 2]}, {"a": (1, 2)}, {}) == []
    secret = "https://user:password@host/data"
    assert drift.changes({"a": drift.as_stored(secret)}, {"a": secret}, {}) == []
    (change,) = drift.changes({"a": "x"}, {"a": secret}, {})
    assert "password" not in str(change)


def test_a_long_value_is_cut_in_the_message() -> None:
    (change,) = drift.changes({"a": "x"}, {"a": "y" * 500}, {})
    assert len(str(change)) < 120


VALUES = st.dictionaries(st.sampled_from("abc"), st.integers() | st.text("xyz", max_size=3), max_size=3)


@given(VALUES, VALUES)
def test_changes_are_found_exactly_where_values_differ(
    old: dict[str, object], new: dict[str, object]
) -> None:
    found = {change.key for change in drift.changes(old, new, {})}
    absent = object()
    assert found == {key for key in "abc" if old.get(key, absent) != new.get(key, absent)}


def test_version_warnings_name_both_versions() -> None:
    lines = drift.version_warnings(
        {"torch": "2.12.0", "peft": "1"}, {"torch": "2.13.0", "peft": "1", "x": "3"}
    )
    assert [line.split(":")[0] for line in lines] == ["torch 2.12.0 → 2.13.0", "x (absent) → 3"]
