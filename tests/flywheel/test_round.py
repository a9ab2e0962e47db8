"""A round: what it trains on and from, who judges it, and what its labels are worth by the rule of the demo's world."""

import json
from pathlib import Path

import pytest

from lite_align.assets import world
from lite_align.flywheel import round
from lite_align.flywheel.round import Round
from lite_align.recipe import Loop, load_loop
from tests.flywheel.small import Made

SAMPLES = Path(__file__).resolve().parents[2] / "data_samples" / "prompts.jsonl"
RECIPE = """loop: {name: town, start: runs/sft}
sample: {prompts: a.jsonl, per_round: 10, temperature: 0.7}
judge: {by: runs/reward, humans: [v.jsonl], rubric: mine.yaml}
final: {prompts: b.jsonl, by: base, probes: c.jsonl}
gates: {kl: 5, alpha: 0.6}
model: {name: tiny}
train: {seed: 7}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Loop:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    return load_loop(file)


def of(plan: Loop, current: str = "runs/sft", folder: Path = Path("runs/town/round-2")) -> Round:
    return Round(2, plan, folder, Path("runs/town/project"), current)


def test_a_round_trains_on_its_pairs_from_what_is_current(plan: Loop) -> None:
    found = round.resolved(of(plan), data="p.jsonl")
    assert (found.recipe.data.path, found.recipe.model.adapter) == ("p.jsonl", "runs/sft")
    assert found.provenance["model.adapter"] == "round 2"
    assert found.provenance["train.seed"].startswith("recipe r.yaml:")
    assert round.resolved(of(plan, "base"), data="p.jsonl").recipe.model.adapter is None


def test_every_round_draws_other_answers(plan: Loop) -> None:
    seeds = [round.seed_of(Round(n, plan, Path(), Path(), "base")) for n in (1, 2, 3)]
    assert len({*seeds, 7}) == 4


def test_judges_get_what_they_read(plan: Loop) -> None:
    reward, base = round.judge_of(plan, "runs/reward"), round.judge_of(plan, "base")
    assert (reward.kind, reward.rubric, reward.model) == ("reward", None, None)
    assert (base.kind, base.rubric) == ("base", Path("mine.yaml"))
    assert round.judge_of(plan, "http://127.0.0.1:1/v1").rubric == Path("mine.yaml")


def test_the_base_is_that_of_what_is_current_or_else_of_the_recipe(
    plan: Loop, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert round.base_of(of(plan, str(made.first))) == str(made.base)
    assert round.base_of(of(plan, "base")) == "tiny"
    file = tmp_path / "auto.yaml"
    file.write_text(RECIPE.replace("model: {name: tiny}\n", ""))
    assert round.base_of(of(load_loop(file), str(made.first))) == str(made.base)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert round.base_of(of(load_loop(file), "base")) == "tiny"  # what auto is without a GPU


def test_the_promotion_has_the_gates_and_the_judge_of_the_recipe(plan: Loop) -> None:
    found = round.promotion_of(of(plan))
    assert (found.final, found.probes, found.judge.by, found.start) == (
        "b.jsonl",
        "c.jsonl",
        "base",
        "runs/sft",
    )
    assert (found.limits.kl, found.limits.alpha, found.limits.unsafe_drop) == (5, 0.6, 0.02)
    assert (found.sampling.temperature, found.sampling.seed, found.uses) == (0.7, 7, 10)
    assert found.labels is None
    people = load_people(plan)
    assert round.promotion_of(of(people)).labels == str(of(people).votes)


def load_people(plan: Loop) -> Loop:
    own = plan.own.recipe
    judge = own.judge.model_copy(update={"by": "people"})
    return Loop(plan.name, type(plan.own)(own.model_copy(update={"judge": judge}), {}), plan.dpo)


def votes(folder: Path, prompts: list[str], *, right: bool, decided: bool = True) -> None:
    rows = []
    for n, prompt in enumerate(prompts):
        ask = world.find(prompt)
        good, bad = (
            (ask.good or "I am sorry, but I will not help with that.", ask.bad[0]) if ask else ("x", "y")
        )
        better = "ab"[n % 2]
        a, b = (good, bad) if better == "a" else (bad, good)
        choice = better if right else "ab"[1 - n % 2]
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "a": a,
                "b": b,
                "category": None,
                "model_a": None,
            }
            | {
                "model_b": None,
                "choice": choice if decided else "tie",
                "annotator": "judge",
                "kind": "reward",
            }
        )
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_labels_are_measured_by_the_rule_of_the_world(plan: Loop, tmp_path: Path) -> None:
    one = of(plan, folder=tmp_path)
    rows = map(json.loads, SAMPLES.read_text(encoding="utf-8").splitlines())
    asked = [row["prompt"] for row in rows if row["category"] == "fact"]
    votes(tmp_path, asked[:24], right=True)
    assert round.worth(one)["rule"]["value"] == 1
    votes(tmp_path, asked[:24], right=False)
    assert round.worth(one)["rule"]["value"] == -1
    votes(tmp_path, asked[:24], right=True, decided=False)
    assert round.worth(one)["rule"]["value"] == 0  # the judge says one and the same of all
    votes(tmp_path, asked[:10], right=True)
    assert round.worth(one)["rule"]["value"] is None  # too few
    votes(tmp_path, [*asked[:24], "What is the capital of France?"], right=True)
    assert round.worth(one) == {}
