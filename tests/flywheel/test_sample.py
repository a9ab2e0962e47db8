"""`sample`: different answers of every side, and the same file whether or not the command was stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lite_align import cli
from lite_align.errors import UserError
from lite_align.flywheel import sample as sampling
from lite_align.flywheel.items import read as read_items
from lite_align.stages.speaker import Sampling
from lite_align.view import View
from tests.flywheel.small import Made


def options(made: Made, out: Path, **changes: Any) -> sampling.Options:
    given = {"data": str(made.prompts), "samples": 3, "sampling": Sampling(1.0, 1.0, 6, 5), "out": out}
    return sampling.Options(**(given | changes))


def sampled(made: Made, out: Path, **changes: Any) -> list[dict[str, Any]]:
    sampling.sample(str(made.first), options(made, out, **changes), View(quiet=True))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_candidates_are_different_and_what_repeats_is_counted(made: Made, tmp_path: Path) -> None:
    rows = sampled(made, tmp_path / "c.jsonl", against="base", samples=8, sampling=Sampling(0.2, 1.0, 2, 5))
    assert [row["prompt"][0]["content"] for row in rows][:2] == ["hello world", "the red fox"]
    for row in rows:
        texts = [answer["text"] for answer in row["answers"]]
        assert len(texts) == len(set(texts)) == 16 - row["repeated"]
    assert sum(row["repeated"] for row in rows) > 0
    assert {answer["model"] for row in rows for answer in row["answers"]} == {"base", str(made.first)}


def test_the_log_prob_is_that_of_the_answer(made: Made, tmp_path: Path) -> None:
    """Greedy: every other answer of so many tokens is less likely at each step, so exp(logprob) lies in (0, 1]."""
    import torch

    from lite_align.data.render import Renderer
    from lite_align.model.backbone import Role
    from lite_align.train.finished import read_finished

    (row, *_) = sampled(made, tmp_path / "c.jsonl", samples=1)
    backbone = read_finished(made.first).backbone("cpu")
    renderer = Renderer(backbone.loaded.tokenizer)
    prompt = renderer.prompt_ids(tuple_of(row["prompt"]))
    from lite_align.stages.rollouts import seed_of

    with backbone.role(Role.POLICY):
        ((again,),) = backbone.sample(
            [prompt], stop_ids=renderer.stop_ids, max_new_tokens=6, seed=seed_of((5, 0))
        )
        ids = torch.tensor([(*prompt, *again.ids)])
        with torch.no_grad():
            logps = backbone.model(input_ids=ids).logits[0].log_softmax(-1)
    own = sum(float(logps[len(prompt) + n - 1, token]) for n, token in enumerate(again.ids))
    assert row["answers"][0]["logprob"] == pytest.approx(own, abs=1e-3)
    assert row["answers"][0]["tokens"] == len(again.ids)


def tuple_of(turns: list[dict[str, str]]) -> Any:
    from lite_align.data.types import Message

    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


@pytest.mark.parametrize("cut", [0, 1, 300, 901])
def test_a_stopped_command_goes_on_to_the_same_file(
    cut: int, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "TOGETHER", 2)
    whole = tmp_path / "whole.jsonl"
    sampled(made, whole)
    part = tmp_path / "part.jsonl"
    part.write_bytes(whole.read_bytes()[:cut])
    shutil.copyfile(f"{whole}.settings.json", f"{part}.settings.json")
    sampled(made, part)
    assert part.read_bytes() == whole.read_bytes()
    calls: list[int] = []
    monkeypatch.setattr(sampling, "Bench", lambda *a: calls.append(1))  # nothing is loaded for nothing
    sampled(made, part)
    assert not calls


def test_a_file_of_other_settings_is_refused(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    sampled(made, out)
    with pytest.raises(UserError, match=r"other settings \(samples\)"):
        sampled(made, out, samples=2)
    (tmp_path / "c.jsonl.settings.json").unlink()
    with pytest.raises(UserError, match="other settings"):
        sampled(made, out)


def test_the_best_by_score_come_first_and_stay() -> None:
    class Judge:
        def scores(self, answers: Any) -> list[float]:
            return [float(len(text)) for _, text in answers]

    texts = ("aa", "aaaa", "a", "aaa")
    row = {"prompt": [{"role": "user", "content": "q"}], "answers": [{"text": text} for text in texts]}
    sampling._score([row], Judge(), 2)  # type: ignore[arg-type]
    assert [answer["text"] for answer in row["answers"]] == ["aaaa", "aaa"]
    assert [answer["reward"] for answer in row["answers"]] == [4.0, 3.0]


def test_best_needs_a_reward(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="what is best"):
        sampled(made, tmp_path / "c.jsonl", best=1)


def test_label_and_judge_read_the_file(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    arguments = ["sample", str(made.first), "--data", str(made.prompts), "--n", "3", "--max-tokens", "6"]
    assert cli.run([*arguments, "--against", "reference", "--out", str(out), "--quiet"]) == 0
    found = read_items(str(out))
    assert len(found.comparisons) == 5
    assert all(one.model_a in ("base", str(made.first)) for one in found.comparisons)
