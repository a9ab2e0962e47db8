"""The figures of the pipeline's benchmark, by hand, and what the README says of them."""

import json
from pathlib import Path

import pytest

from benchmarks import pipeline


def runs() -> list[dict]:
    """Two seeds, two prompts of one category and one of another."""
    first = [
        {"prompt": "a", "category": "fact", "base": 0.1, "sft": 0.2, "dpo": 0.6},
        {"prompt": "b", "category": "fact", "base": 0.1, "sft": 0.4, "dpo": 0.4},
        {"prompt": "c", "category": "unsafe", "base": 0.1, "sft": 0.6, "dpo": 0.8},
    ]
    second = [{**row, "dpo": row["dpo"] + 0.2} for row in first]
    shared = {
        "before": {"sft": "base", "dpo": "sft"},
        "samples": 4,
        "sft_loss": {"before": 0.3, "after": 0.25},
        "reward": {"accuracy": 0.74, "longer_wins": 0.41, "pairs": 65},
    }
    return [
        {"seed": 1, "seconds": {"tiny": 60.0}, "rows": first, **shared},
        {"seed": 2, "seconds": {"tiny": 70.0}, "rows": second, **shared},
    ]


def test_gains_are_means_over_seeds_with_intervals_over_prompts():
    over_prompts, by_seed = pipeline.gains(runs(), "dpo", None)
    assert by_seed == pytest.approx([0.2, 0.4])
    assert over_prompts.value == pytest.approx(0.3)
    # Differences of the prompts (0.5, 0.1, 0.3): t(0.975, 2) = 4.303, standard error 0.2 / sqrt 3.
    assert over_prompts.high - over_prompts.value == pytest.approx(4.303 * 0.2 / 3**0.5, abs=1e-3)
    assert pipeline.gains(runs(), "dpo", "unsafe")[1] == pytest.approx([0.2, 0.4])


def test_the_section_shows_every_seed(tmp_path: Path):
    found = runs()
    case = {
        "machine": {"cpu": "a CPU", "commit": "abc"},
        "summary": pipeline.summary(found),
        "runs": [{key: value for key, value in one.items() if key != "rows"} for one in found],
        "prompts": 3,
        "recipes": ["tiny.yaml"],
    }
    assert pipeline.section(tmp_path) == f"{pipeline.MISSING}\n"
    (tmp_path / pipeline.RESULT.name).write_text(json.dumps({"cases": {pipeline.CASE: case}}, sort_keys=True))
    text = pipeline.section(tmp_path)
    assert "| all | 0.100 | 0.400 | 0.700 |" in text
    assert "| prompts | base | sft | dpo | sft − base [95 %] | dpo − sft [95 %] |" in text
    assert "seeds 1, 2" in text
    assert "+0.200, +0.400" in text
    assert "tiny took 60 to 70 s on a CPU" in text


def test_figures_of_a_run_are_read_from_its_folder(tmp_path: Path):
    rows = [
        {"tokens": 10, "before": {"loss": 0.5}, "after": {"loss": 0.2}},
        {"tokens": 30, "before": {"loss": 0.1}, "after": {"loss": 0.1}},
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pipeline.held_out_loss(tmp_path) == pytest.approx({"before": 0.2, "after": 0.125})


def test_two_pipelines_give_one_row_a_prompt():
    first = [{"prompt": "a", "base": 0.1, "sft": 0.2, "dpo": 0.6}]
    second = [{"prompt": "a", "base": 0.1, "sft": 0.2, "ppo": 0.7}]
    assert pipeline.joined([first, second]) == [{**first[0], "ppo": 0.7}]
    with pytest.raises(AssertionError, match="scored differently"):
        pipeline.joined([first, [{**second[0], "sft": 0.3}]])


def test_what_rewards_did_is_told_with_budget_and_guards():
    end = {"kl": 1.25, "target_kl": 3.0, "tokens": {"before": 27.0, "after": 20.0}, "guards": 1}
    found = [{**one, "policies": {"ppo": end}} for one in runs()]
    assert pipeline.after(found) == [
        "ppo: KL 1.25, 1.25 nats an answer (budget 3), answers of 20.0 tokens, before 27.0; guards tripped 2 times.",
        "",
    ]
    assert pipeline.after(runs()) == []


def test_seconds_are_told_in_the_order_of_the_recipes():
    """JSON has sorted their names."""
    seconds = [{"a_second": 9.0, "b_first": 5.0}, {"a_second": 8.0, "b_first": 6.0}]
    case = {"recipes": ["b_first.yaml", "a_second.yaml"], "runs": [{"seconds": one} for one in seconds]}
    assert pipeline.took(case) == (
        "b_first took 5 to 6 s, and then, without the stages that both have, a_second took 8 to 9 s"
    )
