"""The comparison of value heads: what a result file becomes in the README, and what is read of a run."""

import json
from pathlib import Path

from benchmarks import record, value_heads


def test_no_file_is_not_yet_measured(tmp_path: Path):
    assert value_heads.section(tmp_path).count(value_heads.MISSING) == 2 * 3


def test_a_head_is_told_with_its_mean_and_range(tmp_path: Path):
    seeds = {
        str(seed): {**dict.fromkeys(value_heads.FIGURES, 0.5), "explained": value}
        for seed, value in ((1, 0.2), (2, 0.4))
    }
    record.add(tmp_path / value_heads.RESULT.name, "policy", {"machine": {}, "seeds": seeds})
    text = value_heads.section(tmp_path)
    assert "| the policy's own (a linear head) | 0.3 (0.2–0.4) | 0.5 (0.5–0.5) |" in text
    assert text.count(value_heads.MISSING) == 3


def test_figures_are_those_of_the_last_third_and_of_paired_prompts(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"stage": "ppo", "status": "finished"}))
    rows = [
        {"step": n, "value/explained_variance": value, "speed/learned_tokens_per_second": 100.0 * n}
        for n, value in enumerate([-1.0, 0.0, 0.1, 0.2, 0.4, 0.6], 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [
        {"before": {"reward": 0.0, "rule_score": 0.5}, "after": {"reward": 1.0, "rule_score": 0.7}},
        {"before": {"reward": 1.0, "rule_score": 0.5}, "after": {"reward": 1.0, "rule_score": 0.5}},
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    found = value_heads.figures(tmp_path)
    assert found == {"explained": 0.5, "reward": 0.5, "rule_score": 0.09999999999999998, "learning": 350.0}
