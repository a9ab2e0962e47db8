"""Rules: every value by hand, and what a recipe can get wrong."""

import time

import pytest

from lite_align.data.types import Message
from lite_align.errors import RecipeError
from lite_align.stages import rules
from lite_align.stages.episodes import Episode
from lite_align.stages.rules import RULES, RuleReward, find, rule


def episode(answer: str, *, stopped: bool = True, row: dict[str, object] | None = None) -> Episode:
    return Episode((Message("user", "?"),), answer, len(answer), stopped, row or {})


@pytest.mark.parametrize(
    ("written", "answer", "value"),
    [
        ("repetition", "a b c d", 0),
        ("repetition", "a b c a b c", -1 / 4),  # abc bca cab abc
        ("repetition", "no no no no no no", -3 / 4),
        ("repetition", "", 0),
        ("words:8", "w " * 8, 0),
        ("words:8", "w " * 9, -1 / 2),  # the ramp is 8 / 4 = 2 words long
        ("words:8", "w " * 10, -1),
        ("words:8", "w " * 90, -1),
        ("contains:Main Street", "it is in MAIN STREET.", 1),
        ("contains:Main Street", "it is in Main St.", 0),
        ("contains:a:b", "a:b", 1),
        (r"matches:\d+:\d\d", "at 10:30", 1),
        (r"matches:^\d", "at 10", 0),
    ],
)
def test_what_is_read_off_a_text(written, answer, value):
    assert find(written)(episode(answer)) == pytest.approx(value)


def test_an_answer_that_was_cut_did_not_stop():
    assert find("stopped")(episode("a", stopped=True)) == 1
    assert find("stopped")(episode("a", stopped=False)) == 0


@pytest.mark.parametrize(
    ("solution", "answer", "value"),
    [
        ("She has 5 apples. #### 72", "So 70 + 2 = 72.", 1),
        ("#### 72", "72 apples and 3 pears", 0),  # the last number is 3
        ("#### 72", "#### 72\n", 1),
        ("#### 1,250", "It costs $1,250.00.", 1),
        (1250, "1250", 1),
        (1250.5, "1,250.50", 1),
        (-3, "It is -3 degrees", 1),
        (3, "5-3", 1),
        (3, "It is -3", 0),
        (72, "172", 0),
        (72, "7.72", 0),
        (72, "none", 0),
        ("Paris", "The capital is **Paris**.", 1),
        ("Paris", "paris", 1),
        ("Paris", "Paris is the capital", 0),
        ("Paris", "ComParis", 0),
        ("12 Main Street", "It is in 12 main street", 1),
        ("12 Main Street", "It is in 112 main street", 0),
        (True, "That is true.", 1),
        ("Paris", "", 0),
    ],
)
def test_an_answer_ends_with_the_solution(solution, answer, value):
    assert find("equals:solution")(episode(answer, row={"solution": solution})) == value


@pytest.mark.parametrize("row", [{}, {"solution": None}, {"solution": ["a"]}, {"solution": " . "}])
def test_a_row_without_a_solution_is_counted(row):
    source = RuleReward("equals:solution", weight=1)
    assert source([episode("a", row=row), episode("a", row={"solution": "a"})]) == [None, 1]
    assert source.errors.tell() == [
        "rule equals:solution: 1 without a solution",
        '  the row has no text or number in "solution"',
    ]


def test_a_search_without_end_is_ended_and_counted(monkeypatch):
    monkeypatch.setattr(rules, "REGEX_SECONDS", 0.2)
    source = RuleReward(r"matches:(?:.*?a.*?){12}\d", weight=1)
    begun = time.monotonic()
    assert source([episode("a" * 200), episode("a" * 12 + "1")]) == [None, 1]
    assert time.monotonic() - begun < 20
    assert source.errors.kinds == {"took over 0.2 s": 1}


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("repetitions", 'ppo.rules: "repetitions" is no rule. Did you mean repetition?'),
        ("word:80", 'ppo.rules: "word:80" is no rule. Did you mean words:COUNT?'),
        ("xyz", 'ppo.rules: "xyz" is no rule.'),
        ("stopped:1", 'ppo.rules: "stopped:1": stopped takes nothing after it.'),
        ("words", 'ppo.rules: "words": COUNT must be a whole number above 0, as in words:COUNT.'),
        ("words:0", 'ppo.rules: "words:0": COUNT must be a whole number above 0, as in words:COUNT.'),
        ("words:²", 'ppo.rules: "words:²": COUNT must be a whole number above 0, as in words:COUNT.'),
        ("contains:", 'ppo.rules: "contains:": TEXT must be not empty, as in contains:TEXT.'),
        (
            "matches:(a",
            'ppo.rules: "matches:(a": REGEX must be a regular expression (missing ) at position 2), '
            "as in matches:REGEX.",
        ),
    ],
)
def test_what_a_recipe_gets_wrong(written, what):
    with pytest.raises(RecipeError) as caught:
        RuleReward(written, weight=1)
    assert caught.value.what == what
    assert "words:COUNT" in caught.value.remedy


def test_the_catalogue_is_for_people():
    assert list(RULES) == ["stopped", "repetition", "words", "contains", "matches", "equals"]
    assert all(entry.summary.endswith(".") for entry in RULES.values())
    assert RULES["words"].form == "words:COUNT"
    with pytest.raises(ValueError, match="exists already"):
        rule()(rules.stopped)


def test_a_rule_is_a_source():
    source = RuleReward("words:8", weight=0.5)
    assert (source.name, source.weight) == ("rule/words:8", 0.5)
    source.close()
    assert source([]) == []
