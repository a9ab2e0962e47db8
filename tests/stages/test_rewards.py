"""What a recipe asks for, the sum of several sources, and a round without rewards."""

import pytest

from lite_align.data.types import Message
from lite_align.errors import RecipeError, TrainingStopped
from lite_align.recipe import PPOOptions
from lite_align.stages.rewards import Episode, require_enough, text_rewards, total


def test_sources_are_those_of_the_recipe(tmp_path):
    (tmp_path / "rewards.py").write_text("def f(answer) -> float:\n    return len(answer)\n")
    options = PPOOptions(
        rules={"words:1": 2.0, "stopped": 1.0},
        reward_fn=f"{tmp_path}/rewards.py:f",
        reward_fn_weight=0.5,
    )
    sources = text_rewards(options)
    try:
        assert {source.name: source.weight for source in sources} == {
            "rule/words:1": 2.0,
            "rule/stopped": 1.0,
            "function": 0.5,
        }
        episodes = [Episode((Message("user", "?"),), text, 3, True, {}) for text in ("abc", "a b c d")]
        values = {source.name: source(episodes) for source in sources}
        assert values == {"rule/words:1": [0.0, -1.0], "rule/stopped": [1.0, 1.0], "function": [3.0, 7.0]}
        weights = {source.name: source.weight for source in sources}
        assert total(values, weights) == [0 + 1 + 1.5, -2 + 1 + 3.5]
    finally:
        for source in sources:
            source.close()
    assert text_rewards(PPOOptions()) == []


def test_an_answer_without_one_value_has_no_score():
    values = {"reward": [1.0, 2.0, None], "function": [3.0, None, None]}
    assert total(values, {"function": 0.5, "reward": 2.0}) == [3.5, None, None]
    with pytest.raises(ValueError, match="longer"):
        total({"a": [1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 1.0})


def test_all_wrong_rules_are_told_at_once(tmp_path):
    with pytest.raises(RecipeError, match="is no rule"):
        text_rewards(PPOOptions(rules={"stoped": 1.0}))
    with pytest.raises(RecipeError) as caught:
        text_rewards(PPOOptions(rules={"stoped": 1.0, "words": 1.0}, reward_fn=f"{tmp_path}/none.py:f"))
    assert caught.value.what == "2 rules do not fit."
    assert [detail.split('"')[1] for detail in caught.value.details] == ["stoped", "words"]
    with pytest.raises(RecipeError, match="does not exist"):
        text_rewards(PPOOptions(reward_fn=f"{tmp_path}/none.py:f"))


def test_a_round_without_rewards_stops_the_training():
    require_enough([1.0, None], [])
    require_enough([], [])
    with pytest.raises(TrainingStopped) as caught:
        require_enough([1.0, None, None], ["rule x: 2 without a solution"])
    assert caught.value.what.startswith("2 of 3 answers have no reward")
    assert caught.value.details == ("rule x: 2 without a solution",)
    assert "--resume" in caught.value.remedy
