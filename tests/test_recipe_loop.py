"""Recipes of loops: what belongs to the loop, what to the training of its rounds, every mistake with its line."""

from pathlib import Path

import pytest

from lite_align.errors import RecipeError
from lite_align.recipe import DPORecipe, LoopRecipe, is_loop, load_loop
from lite_align.recipe.loop import GateOptions

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SOUND = """loop: {name: town, rounds: 4, start: runs/sft}
sample: {prompts: a.jsonl, per_round: 10}
judge: {by: runs/reward, humans: [v.jsonl, w.jsonl]}
final: {prompts: b.jsonl}
gates: {conditions: ["win_rate>=0.55"], kl: 5}
model: {name: tiny}
loss: {beta: 0.3}
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        file = tmp_path / "r.yaml"
        file.write_text(text)
        return file

    return write


def mistakes(file: Path, *sets: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_loop(file, sets)
    assert caught.value.exit_code == 2
    return "\n".join([caught.value.what, *caught.value.details])


def test_a_sound_loop(written):
    file = written(SOUND)
    assert is_loop(file)
    found = load_loop(file, ["loop.rounds=2", "train.learning_rate=1e-4", "final.uses=3"])
    own, dpo = found.own.recipe, found.dpo.recipe
    assert isinstance(own, LoopRecipe)
    assert isinstance(dpo, DPORecipe)
    assert (found.name, own.loop.rounds, own.loop.start) == ("town", 2, "runs/sft")
    assert own.judge.humans == ("v.jsonl", "w.jsonl")
    assert own.gates.conditions == ("win_rate>=0.55",)
    assert (own.final.uses, dpo.model.name, dpo.loss.beta, dpo.train.learning_rate) == (3, "tiny", 0.3, 1e-4)
    assert found.dpo.provenance["train.learning_rate"] == "--set"
    assert found.own.provenance["sample.per_round"] == "recipe r.yaml:2"


def test_a_name_is_that_of_the_file_where_none_is_given(written):
    assert load_loop(written(SOUND.replace("name: town, ", ""))).name == "r"
    assert "letters, digits" in mistakes(written(SOUND.replace("town", "../town")))


def test_all_mistakes_are_told_at_once_with_their_lines(written):
    file = written(
        "loop: {rounds: 0, strat: x}\nsampel: {n: 2}\nsample: {n: 1}\ntrain: {learning_rte: 1}\n"
        "data: {path: x.jsonl}\nmodel: {adapter: y}\nrewardd: {}\n"
    )
    told = mistakes(file, "train.epochs=two", "nonsense=3")
    for line, text in (
        (1, "loop.rounds is 0; expected a whole number above 0"),
        (1, "loop.strat is not a setting of loop. Did you mean loop.start?"),
        (2, "sampel is not a part of a loop. Did you mean sample?"),
        (3, "sample.n is 1; expected a whole number from 2"),
        (4, "train.learning_rte is not a setting of dpo. Did you mean train.learning_rate?"),
        (5, "data.path is set by every round itself"),
        (6, "model.adapter is set by every round itself"),
        (7, "rewardd is not a part of a loop. It has"),
    ):
        assert f"{file}:{line}: {text}" in told
    assert 'train.epochs is "two"' in told
    assert "nonsense is not a setting of loop" in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("prompts: a.jsonl, ", "", "sample.prompts names no file"),
        ("prompts: b.jsonl", "uses: 2", "final.prompts names no file"),
        (", humans: [v.jsonl, w.jsonl]", "", "judge.humans names no votes of people"),
        ("by: runs/reward, humans: [v.jsonl, w.jsonl]", "by: people", "final.by names no judge"),
    ],
)
def test_what_a_loop_cannot_do_without(written, old, new, told):
    assert old in SOUND
    assert told in mistakes(written(SOUND.replace(old, new)))


def test_labels_nobody_has_proved_are_trained_on_only_by_force(written):
    text = SOUND.replace("humans: [v.jsonl, w.jsonl]", "force: true")
    assert load_loop(written(text)).own.recipe.judge.force
    people = SOUND.replace("by: runs/reward, humans: [v.jsonl, w.jsonl]", "by: people")
    assert load_loop(written(people.replace("b.jsonl", "b.jsonl, by: base"))).own.recipe.final.by == "base"


def test_the_loop_of_the_demo_loads():
    found = load_loop(RECIPES / "loop_tiny.yaml")
    assert found.dpo.recipe.model.name == "tiny"
    complete = load_loop(
        RECIPES / "loop.yaml", ["sample.prompts=a.jsonl", "final.prompts=b.jsonl", "judge.force=true"]
    )
    assert complete.own.recipe.gates == GateOptions()
    assert not is_loop(RECIPES / "dpo.yaml")
    assert not is_loop(RECIPES / "pipeline_tiny.yaml")
