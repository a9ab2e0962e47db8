"""Pipelines in one file: what each stage takes, and every stage that does not connect, told with its line."""

from pathlib import Path

import pytest

from lite_align.errors import RecipeError
from lite_align.recipe import is_pipeline, load_pipeline

SOUND = """pipeline: town
seeds: [1, 2]
model: {name: tiny}
train: {seed: 7}
stages:
  sft: {data: {path: a.jsonl}, lora: {dropout: 0.1}}
  judge: {stage: reward, from: sft, data: {path: b.jsonl}}
  dpo: {from: sft, data: {path: b.jsonl}, loss: {beta: 0.3}}
score: {prompts: c.jsonl, samples: 2}
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "r.yaml"
        file.write_text(text)
        return file

    return write


def mistakes(file: Path, *sets: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_pipeline(file, sets=sets)
    assert caught.value.exit_code == 2
    return "\n".join([caught.value.what, *caught.value.details])


def test_a_sound_pipeline(written):
    file = written(SOUND)
    assert is_pipeline(file)
    found = load_pipeline(
        file, flags={"train.seed": 9, "model.name": None}, sets=["sft.lora.rank=4", "train.epochs=2"]
    )
    assert (found.name, found.seeds) == ("town", (1, 2))
    assert [(step.name, step.stage, step.start) for step in found.steps] == [
        ("sft", "sft", None),
        ("judge", "reward", "sft"),
        ("dpo", "dpo", "sft"),
    ]
    assert {step.resolved.recipe.model.name for step in found.steps} == {"tiny"}
    assert {step.resolved.recipe.train.seed for step in found.steps} == {9}
    assert {step.resolved.recipe.train.epochs for step in found.steps} == {2.0}
    assert [step.resolved.recipe.lora.rank for step in found.steps] == [4, 16, 16]
    assert found.step("dpo").resolved.recipe.loss.beta == 0.3
    assert found.step("sft").resolved.provenance["model.name"] == "recipe r.yaml:3"
    assert found.step("dpo").resolved.provenance["loss.beta"] == "recipe r.yaml:8"
    assert found.score is not None
    assert (found.score.prompts, found.score.samples) == ("c.jsonl", 2)


PPO = """pipeline: rewarded
model: {name: tiny}
stages:
  sft: {data: {path: a.jsonl}}
  judge: {stage: reward, from: sft, data: {path: b.jsonl}}
  ppo: {from: sft, reward: judge, data: {path: c.jsonl}}
"""


def test_a_step_names_the_reward_model_that_it_learns_from(written, tmp_path):
    found = load_pipeline(written(PPO)).step("ppo")
    assert (found.start, found.reward) == ("sft", "judge")
    assert found.resolved.recipe.ppo.reward is None
    (tmp_path / "elsewhere").mkdir()
    text = PPO.replace("reward: judge", f"reward: {tmp_path / 'elsewhere'}")
    assert load_pipeline(written(text)).step("ppo").reward == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "reward: judge",
            "reward: juge",
            "r.yaml:6: ppo learns from juge, which is neither an earlier stage",
        ),
        ("reward: judge", "reward: sft", "r.yaml:6: ppo cannot learn from sft: a sft run scores no answers"),
        (
            "data: {path: c.jsonl}",
            "data: {path: c.jsonl}, ppo: {reward: runs/x}",
            "ppo has both reward and ppo.reward; give one of them",
        ),
        ("{from: sft, reward: judge", "{stage: dpo, reward: judge", "reward"),
    ],
)
def test_a_reward_that_does_not_connect_is_told(written, old, new, told):
    assert old in PPO
    assert told in mistakes(written(PPO.replace(old, new)))


def test_the_score_can_be_changed_from_outside(written):
    found = load_pipeline(written(SOUND), sets=["score.samples=8", "score.prompts=d.jsonl"]).score
    assert found is not None
    assert (found.samples, found.prompts) == (8, "d.jsonl")


def test_a_recipe_of_one_stage_is_no_pipeline(written):
    assert not is_pipeline(written("stage: dpo\n"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "from: sft, data: {path: b.jsonl}, loss",
            "from: judge, data: {path: b.jsonl}, loss",
            "r.yaml:8: dpo cannot continue judge: a reward run leaves a reward adapter",
        ),
        (
            "from: sft, data: {path: b.jsonl}, loss",
            "from: sfd, data: {path: b.jsonl}, loss",
            "r.yaml:8: dpo continues sfd, which is neither an earlier stage nor a folder; earlier stages: sft, judge",
        ),
        (
            "  sft: {",
            "  sft: {from: dpo, ",
            "sft continues dpo, which is neither an earlier stage nor a folder; no stage",
        ),
        ("stage: reward", "stage: rewards", "r.yaml:7: rewards is not a stage"),
        (
            "{path: b.jsonl}, loss",
            "{path: b.jsonl}, model: {name: other}, loss",
            "dpo has the base other, and sft, which it continues, tiny",
        ),
        (
            "{beta: 0.3}",
            "{bata: 0.3}",
            "r.yaml:8: loss.bata is not a setting of dpo. Did you mean loss.beta?",
        ),
        ("data: {path: a.jsonl}, ", "", "sft names no data"),
        ("samples: 2", "sample: 2", "score.sample"),
        ("seeds: [1, 2]", "seeds: [1, x]", "seeds is not a list of whole numbers"),
        ("train: {seed: 7}", "trains: {seed: 7}", "trains is not a part of a pipeline. Did you mean train?"),
        ("stages:\n", "stages: {}\nother:\n", "stages names no stage"),
    ],
)
def test_what_does_not_connect_is_told_with_its_line(written, old, new, told):
    assert old in SOUND
    assert told in mistakes(written(SOUND.replace(old, new)))


def test_all_mistakes_are_told_at_once(written):
    text = SOUND.replace("from: sft, data", "from: nothing, data").replace("{beta: 0.3}", "{beta: -1}")
    told = mistakes(written(text), "loss.gamma=1")
    assert told.count("nothing") == 1  # dpo has a mistake of its own, so only the judge is connected
    assert "loss.beta is -1" in told
    assert "--set loss.gamma=1: no stage of this pipeline has the setting loss.gamma" in told


def test_a_name_that_is_no_folder_name(written):
    assert "letters, digits" in mistakes(written(SOUND.replace("pipeline: town", "pipeline: ../town")))
