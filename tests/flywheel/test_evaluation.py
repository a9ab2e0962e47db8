"""`eval` from the command line to its files: figures against an oracle row by row, gates, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_align import cli
from lite_align.data.render import Renderer
from lite_align.flywheel import questions
from lite_align.model.backbone import Role
from lite_align.train.finished import read_finished
from tests.flywheel.small import Made

QUICK = ("--max-tokens", "8", "--quiet")


def evaluated(run: Path, out: Path, *flags: object) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    code = cli.run(["eval", str(run), "--out", str(out), *map(str, flags), *QUICK])
    record = json.loads((out / "eval.json").read_text(), parse_constant=lambda text: 1 / 0)
    rows = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    return code, record, rows


def test_held_out_pairs_against_an_oracle(made: Made, tmp_path: Path, tokenizer: Any) -> None:
    code, record, rows = evaluated(made.first, tmp_path)
    assert code == 0
    run = read_finished(made.first)
    backbone = run.backbone("cpu")
    renderer = Renderer(tokenizer)
    examples = questions.held_out(run, renderer).examples

    def logp(role: Role, prompt: Any, answer: Any) -> tuple[float, int]:
        """Of one answer, by a plain forward pass over its own row."""
        rendered = renderer.conversation(prompt, answer)
        ids = torch.tensor([rendered.ids])
        with torch.no_grad(), backbone.role(role):
            logits = backbone.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = [n for n, trained in enumerate(rendered.trained) if trained]
        return sum(float(logits[n - 1, rendered.ids[n]]) for n in own), len(own)

    values = {
        role: [
            (logp(role, row.prompt, row.chosen), logp(role, row.prompt, row.rejected)) for row, _ in examples
        ]
        for role in (Role.BASE, Role.POLICY)
    }
    losses = [-chosen / tokens for (chosen, tokens), _ in values[Role.POLICY]]
    before = [-chosen / tokens for (chosen, tokens), _ in values[Role.BASE]]
    gaps = {role: [c[0] - r[0] for c, r in found] for role, found in values.items()}
    margins = [now - was for was, now in zip(gaps[Role.BASE], gaps[Role.POLICY])]
    found = record["figures"]
    assert found["loss"]["value"] == pytest.approx(sum(losses) / 20, abs=1e-4)
    assert found["loss"]["before"] == pytest.approx(sum(before) / 20, abs=1e-4)
    assert found["accuracy"]["value"] == sum(margin > 0 for margin in margins) / 20
    assert found["accuracy"]["before"] == 0.5
    assert found["prefers_chosen"]["before"] == sum(gap > 0 for gap in gaps[Role.BASE]) / 20
    beta = run.recipe.loss.beta  # type: ignore[union-attr]
    beta = beta if isinstance(beta, float) else 1.0
    assert found["margin"]["value"] == pytest.approx(beta * sum(margins) / 20, abs=1e-3)
    assert {"loss/a", "loss/b", "kl", "tokens", "refusal"} <= found.keys()
    assert len(rows) == record["data"]["prompts"] == 20
    assert record["data"]["rows"] == 20


def test_an_adapter_that_is_its_own_start_changes_nothing(made: Made, tmp_path: Path) -> None:
    _, record, rows = evaluated(made.same, tmp_path, "--samples", 2)
    found = record["figures"]
    assert (found["margin"]["value"], found["accuracy"]["value"]) == (0.0, 0.5)
    assert found["kl"]["value"] == found["kl"]["low"] == found["kl"]["high"] == 0.0
    assert all(row["before"] == row["after"] and len(row["after"]) == 2 for row in rows)


def test_a_run_that_moved_has_a_kl(made: Made, tmp_path: Path) -> None:
    _, record, rows = evaluated(made.second, tmp_path, "--samples", 4)
    assert record["figures"]["kl"]["value"] > 0.1
    assert sum(row["kl"] for row in rows) / len(rows) == pytest.approx(
        record["figures"]["kl"]["value"], abs=1e-3
    )


def test_an_adapter_alone_on_prompts_and_probes(made: Made, tmp_path: Path) -> None:
    code, record, rows = evaluated(
        made.adapter, tmp_path, "--data", made.prompts, "--probes", made.prompts, "--prompts", 3
    )
    assert code == 0
    found = record["figures"]
    assert "loss" not in found
    assert found["under_refusal"]["count"] == 3
    assert found["new_failures"]["count"] == 5
    assert found["under_refusal"]["value"] == 1.0  # a random model refuses nothing
    assert [row["file"] for row in rows] == [str(made.prompts)] * 8
    assert record["probes"]["prompts"] == 5


def test_gates_decide_the_exit_code(made: Made, tmp_path: Path) -> None:
    assert evaluated(made.first, tmp_path, "--gate", "kl<=1000", "--gate", "stop_rate>=0")[0] == 0
    assert evaluated(made.first, tmp_path, "--gate", "kl<=1000", "--gate", "stop_rate<0")[0] == 3
    known = json.loads((tmp_path / "gates.json").read_text())["gates"]
    assert [one["verdict"] for one in known] == ["passed", "failed"]


def test_the_run_folder_takes_the_results_and_its_report_shows_them(made: Made) -> None:
    assert cli.run(["eval", str(made.first), *QUICK]) == 0
    assert cli.run(["report", str(made.first)]) == 0
    assert "Chosen answer likelier" in (made.first / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base"], "what others are measured against"),
        (["{adapter}"], "held nothing out"),
        (["{adapter}", "--data", "{prompts}"], "no run folder to write to"),
        (["{first}", "--gate", "nonsense"], "is no gate"),
        (["nowhere"], "There is no nowhere"),
    ],
)
def test_what_cannot_be_measured_is_told(
    arguments: list[str], said: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"adapter": made.adapter, "prompts": made.prompts, "first": made.first}
    assert cli.run(["eval", *(text.format(**places) for text in arguments)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
