"""The verdict on ppo runs: what it rests on, what it says of guards, and what it warns of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lite_align.evaluate.folder import read
from lite_align.evaluate.verdict import judge

Builder = Callable[..., Path]


def edited(folder: Path, **blocks: Any) -> Path:
    """The same run with blocks of run.json replaced."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **blocks}))
    return folder


def with_metric(name: str, values: list[float]) -> Callable[[list[dict]], list[dict]]:
    return lambda rows: rows + [{"step": step, name: value} for step, value in enumerate(values)]


def test_a_healthy_run_is_better_by_what_was_not_optimised(build_policy: Builder):
    found = judge(build_policy())
    assert found.word == "better"
    assert found.warnings == []
    score, reward, distance, guards = found.sentences
    assert score.startswith(
        "On 60 held-out prompts the rule score went from 0.67 to 0.80: +0.13 [+0.11, +0.16]."
    )
    assert reward.endswith("It is the reward that was optimised.")
    assert distance.startswith("The policy is 4.63 nats an answer from its start")
    assert distance.endswith("(+8 %).")
    assert guards == "No guard saw anything."
    assert [figure.label for figure in found.figures] == [
        "Rule score",
        "Held-out reward",
        "KL",
        "Answer length",
    ]
    assert found.headline.startswith("rule score 0.67 → 0.80, +0.13 [")
    assert found.headline.endswith("length +8 %")


def test_a_hacked_run_is_worse_although_the_reward_rose_and_says_so_first(build_policy: Builder):
    found = judge(build_policy(hacked=True, rolled_back_to=18))
    assert found.word == "worse"
    assert found.sentences[0].startswith("Reward hacking was seen at step 36: The reward rose by +0.92")
    assert found.sentences[1] == "The policy is that of step 18, to which a guard rolled it back."
    assert found.sentences[-1] == "Guards: length warned once; hacking rolled the policy back once."
    assert found.warnings[0] == "Guard length, at step 24: Answers have 36.0 tokens in the mean."
    assert any("Answers grew 60 % longer" in text for text in found.warnings)
    assert any(
        text.startswith("The rule score fell in some categories: borderline −0.2") for text in found.warnings
    )


def test_without_a_rule_score_only_the_reward_is_named_and_nothing_more_claimed(build_policy: Builder):
    found = judge(build_policy(scored=False))
    assert found.word == "higher reward"
    assert found.sentences[0].endswith(
        "that was optimised and proves nothing about quality; read the answers."
    )
    assert found.figures[0].value == "–"
    assert found.categories is not None
    assert found.categories.title == "Held-out reward by category"


@pytest.mark.parametrize(
    ("gained", "lost", "word"), [(12, 1, "better"), (1, 12, "worse"), (4, 3, "no evidence either way")]
)
def test_held_out_pairs_come_before_the_reward(build_policy: Builder, gained: int, lost: int, word: str):
    record = {"pairs": 60, "before": 0.6, "after": 0.6 + (gained - lost) / 60, "gained": gained, "lost": lost}
    found = judge(build_policy(scored=False, preference=record))
    assert found.word == word
    assert f"{gained} were gained and {lost} lost" in found.sentences[0]
    assert "proves nothing" not in " ".join(found.sentences)
    assert found.figures[0].label == "Preference accuracy"


def test_shares_of_pairs_alone_are_no_evidence(build_policy: Builder):
    run = build_policy(scored=False, metrics=with_metric("eval/preference_accuracy", [0.5, 0.9]))
    found = judge(run)
    assert found.word == "no evidence either way"
    assert "how many changed was not recorded" in found.sentences[0]


def test_the_rule_score_comes_before_pairs(build_policy: Builder):
    record = {"pairs": 60, "before": 0.6, "after": 0.9, "gained": 20, "lost": 1}
    assert judge(build_policy(hacked=True, preference=record)).word == "worse"


def test_a_run_without_held_out_prompts_says_nothing(build_policy: Builder):
    found = judge(build_policy(held_out=0))
    assert found.word == "no evidence either way"
    assert found.sentences[0].startswith("No held-out prompts were measured")
    assert [figure.value for figure in found.figures] == ["–"] * 4


def test_categories_share_one_axis(build_policy: Builder):
    found = judge(build_policy()).categories
    assert found is not None
    assert (found.title, found.axis, found.chance) == ("Rule score by category", "0.00 to 1.00", False)
    first = found.rows[0]
    assert (first.name, first.count) == ("borderline", 12)
    assert first.dot == pytest.approx(100 * float(first.after), abs=0.6)
    assert first.low < first.dot < first.high


def test_warnings_name_what_else_went_wrong(build_policy: Builder):
    def last(rows: list[dict]) -> list[dict]:
        return [*rows, {"step": 48, "eval/entropy": 0.3, "eval/stop_rate": 0.9, "reward/errors": 7}]

    run = build_policy(metrics=last, blind=["kl: ppo.target_kl is null, so there is no budget"])
    edited(
        run,
        plan={"total_steps": 60},
        recipe={"guards": {"enabled": False, "kl_limit": 2.0}, "ppo": {"target_kl": 2.0}},
    )
    found = judge(run)
    told = "\n".join(found.warnings)
    for part in (
        "Guards were off (guards.enabled)",
        "Guards that could not see: kl: ppo.target_kl is null",
        "KL is over its budget: 4.63 nats an answer, above 2 times ppo.target_kl (2).",
        "Entropy collapsed from 0.62 to 0.3",
        "Only 90.0 % of held-out answers ended with a stop token",
        "7 sampled answers had no reward",
        "The run ended at step 48 of 60.",
    ):
        assert part in told, part
    assert not [text for text in found.sentences if "guard" in text.lower()]


def test_few_prompts_and_a_still_adapter_are_warned_of_and_the_loss_is_not(build_policy: Builder):
    def rising(rows: list[dict]) -> list[dict]:
        return [row | ({"loss": 1.0 + row["step"], "moved": 0.5} if "loss" in row else {}) for row in rows]

    told = judge(build_policy(metrics=rising, held_out=20)).warnings
    assert any("Only 20 held-out prompts" in text for text in told)
    assert any("Only 50.0 % of the adapter's parameters moved" in text for text in told)
    assert not any("loss" in text.lower() for text in told)


def test_what_guards_wrote_is_harmless(build_policy: Builder):
    row = {"step": 6, "guard": "hacking", "action": "warn", "text": "\x1b[31mred \u202eback"}
    found = judge(build_policy(guards=[row, {"guard": None}, row | {"guard": "\x1b[2Jx"}]))
    assert not {"\x1b", "\u202e"} & set("".join([*found.sentences, *found.warnings]))


def test_a_folder_without_the_block_has_a_verdict(build_policy: Builder):
    run = edited(build_policy(), ppo=None, recipe=None, plan=None)
    assert judge(run).word == "better"
    assert read(run).part("ppo") == {}
