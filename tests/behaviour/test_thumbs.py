"""A few dozen steps on thumbs of the built-in world: answers with a thumb up gain on those with a thumb down."""

import json
import random

import pytest

from lite_align.assets import world
from lite_align.evaluate import verdict
from lite_align.recipe import load
from lite_align.stages import answers, training
from lite_align.stages.command import CommandOptions
from tests.stages import small


def thumbs(count: int, *, held_out: bool) -> list[dict[str, object]]:
    """Answers in the style of the built-in model with the thumb of the rule; those in between are left out."""
    rng = random.Random(7)
    rows: list[dict[str, object]] = []
    while len(rows) < count:
        ask = world.draw(rng, held_out=held_out)
        text = world.respond(rng, ask)
        total = world.score(ask, text).total
        if not 0.55 < total < 0.75:
            rows.append(
                {"prompt": ask.text, "completion": text, "label": total >= 0.75, "category": ask.category}
            )
    return rows


@pytest.mark.slow
def test_answers_with_a_thumb_up_gain(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "PROBES", 2)
    data = small.write(tmp_path / "thumbs.jsonl", thumbs(256, held_out=False))
    held = small.write(tmp_path / "held.jsonl", thumbs(100, held_out=True))
    sets = ("loss.name=kto", f"data.held_out_path={held}", "train.max_steps=20", "train.eval_steps=0")
    resolved = load("dpo", data=str(data), flags={"model.name": "tiny"}, sets=sets)
    folder = training.train(resolved, CommandOptions(tmp_path / "run"), small.silent())
    assert folder is not None
    found = verdict.judge(folder)
    assert found.word == "better", found.sentences
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = next(row for row in reversed(rows) if "eval/loss" in row)
    assert last["eval/rewards/chosen"] > 0 > last["eval/rewards/rejected"]
    assert last["eval/rewards/accuracies"] > 0.6
