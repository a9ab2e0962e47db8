"""Online DPO on the built-in world: a reward model judges three rounds, and a round with flipped labels is caught."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_align.assets import world
from lite_align.flywheel import project, promotion
from lite_align.flywheel.loop import loop
from lite_align.recipe import load, load_loop
from lite_align.stages import reload
from lite_align.stages.command import CommandOptions
from lite_align.stages.training import train
from lite_align.view import View

pytestmark = pytest.mark.slow
SAMPLES = Path(__file__).resolve().parents[2] / "data_samples"
ROUNDS = 3
FLIPPED = """from lite_align.assets import world


def worse(prompt, a, b):
    ask = world.find(prompt)
    first, second = (world.score(ask, text).total for text in (a, b))
    return "tie" if first == second else "a" if first < second else "b"
"""


@dataclass
class Town:
    """A loop on the built-in model, judged by a reward run."""

    folder: Path
    recipe: Path

    def run(self, *sets: str) -> tuple[int, str]:
        """Exit code, and what a person sees."""
        out = io.StringIO()
        plan = load_loop(self.recipe, sets)
        return loop(plan, self.folder / "loop", "lite-align loop town.yaml", View(file=out)), out.getvalue()

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "loop" / "rounds.json").read_text())["rounds"]

    @property
    def events(self) -> list[dict[str, Any]]:
        log = self.folder / "loop" / "project" / project.LOG
        return [json.loads(line) for line in log.read_text().splitlines()]

    def scores(self, one: dict[str, Any]) -> list[tuple[float, float]]:
        """What the rule gives the chosen and the rejected answers of a round."""
        found = []
        for line in (self.folder / "loop" / one["folder"] / "pairs.jsonl").read_text().splitlines():
            row = json.loads(line)
            ask = world.find(row["prompt"][-1]["content"])
            assert ask is not None
            a, b = (world.score(ask, row[side][0]["content"]).total for side in ("chosen", "rejected"))
            found.append((a, b))
        return found

    @property
    def current(self) -> str:
        return json.loads((self.folder / "loop" / "project" / project.CURRENT).read_text())["run"]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A reward model of thirty steps; that its files give the same scores elsewhere is tested elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("town")
    rows = (SAMPLES / "reward_pairs.jsonl").read_text().splitlines()[::4]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    sets = ["model.name=tiny", "train.epochs=1", "train.eval_steps=99", "train.save_steps=99"]
    reward = load("reward", data=str(folder / "pairs.jsonl"), sets=sets)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reload, "fresh", lambda *_: None)  # no second process
        train(reward, CommandOptions(folder / "reward"), View(json=True, file=io.StringIO()))
    recipe = folder / "town.yaml"
    recipe.write_text(
        f"""loop: {{name: town, rounds: {ROUNDS}}}
sample: {{prompts: {SAMPLES / "prompts.jsonl"}, per_round: 40, max_new_tokens: 64}}
judge: {{by: {folder / "reward"}, pairs: 6, force: true}}
final: {{prompts: {SAMPLES / "probes_tiny.jsonl"}, by: {folder / "reward"}}}
model: {{name: tiny}}
loss: {{sft_weight: 1}}
train: {{epochs: 1, batch_size: 8, learning_rate: 2e-3, eval_steps: 99, save_steps: 99}}
"""
    )
    yield Town(folder, recipe)
    torch.set_num_threads(threads)


def test_three_rounds_raise_the_rule_score_and_a_flipped_one_is_caught_and_rolled_back(town: Town) -> None:
    code, shown = town.run()
    done = town.rounds
    promoted = [one for one in done if one["status"] == "promoted"]
    # Which rounds pass differs from machine to machine; that none passes by luck, and that it is told, does not.
    assert promoted
    for one in promoted:
        score = one["figures"]["rule_score"]
        assert score["value"] > score["before"], f"round {one['round']} got worse"
    assert f"{len(promoted)} of {ROUNDS} rounds were promoted" in shown
    if len(promoted) < ROUNDS:
        assert (code, done[-1]["status"]) == (3, "refused")
        assert done[-1]["why"]
        assert f"Round {len(done)}, refused: {done[-1]['why']}" in shown.replace("\n           ", " ")
    else:
        assert code == 0
    good = town.current
    assert good.endswith(f"round-{len(promoted)}/dpo")

    # A round whose labels are flipped: the judge of the gate is not, and sees it.
    (town.folder / "judge.py").write_text(FLIPPED)
    flipped = (f"loop.rounds={len(promoted) + 1}", f"judge.by={town.folder / 'judge.py'}:worse")
    code, shown = town.run(*flipped)
    bad = town.rounds[-1]
    assert (code, bad["status"], bad["round"]) == (3, "refused", len(promoted) + 1)
    assert all(chosen < rejected for chosen, rejected in town.scores(bad))  # it was planted
    assert bad["agreement"]["rule"]["value"] < done[0]["agreement"]["rule"]["value"]
    assert bad["figures"]["rule_score"]["change"]["high"] < 0
    assert ": failed" in bad["why"]
    assert town.current == good
    assert [one["status"] for one in town.rounds[:-1]] == ["promoted"] * len(promoted)

    # The same command tells it again, without another look at the sealed prompts.
    before = len(town.events)
    assert town.run(*flipped)[0] == 3
    assert len(town.events) == before
    # Through gates that let it pass, a person takes it back; the loop does not bring it up again.
    code, _ = town.run(*flipped, 'gates.conditions=["kl<=1000"]')
    assert (code, town.rounds[-1]["status"]) == (0, "promoted")
    assert town.current == str(town.folder / "loop" / bad["folder"] / "dpo")
    promotion.rollback(town.folder / "loop" / "project", "ann", "it is rude", View(quiet=True))
    assert town.current == good
    code, shown = town.run(*flipped, 'gates.conditions=["kl<=1000"]')
    assert (code, town.rounds[-1]["status"]) == (3, "rolled back")
    assert "rolled back: by ann: it is rude" in shown
    assert town.current == good
