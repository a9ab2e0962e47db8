"""`lite-align dpo` on thumbs, through the whole pipeline."""

import json
from collections.abc import Iterator

import pytest

from lite_align.data.types import Message, Rated, Source
from lite_align.errors import DataError
from lite_align.evaluate import verdict
from lite_align.evaluate.folder import read
from lite_align.losses.unpaired import balanced_weights
from lite_align.stages import answers
from lite_align.stages.train_kto import opposites
from tests.stages import small
from tests.stages.commands import Done, dpo

LINES = [
    {
        "prompt": row["prompt"],
        "completion": row["chosen" if up else "rejected"],
        "label": up,
        "category": row["category"],
    }
    for number, row in enumerate(small.rows(24))
    for up in ((True, False) if number % 3 == 0 else (True,))
]
"""24 thumbs up, 8 down; every third prompt has both."""
KTO = "loss.name=kto"


@pytest.fixture(autouse=True)
def short_answers(monkeypatch) -> None:
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


def thumbs(tiny, folder, *sets, lines=LINES, **command) -> Done:
    small.write(folder / "rows.jsonl", lines)
    return dpo(tiny, folder, KTO, *sets, **command)


@pytest.fixture(scope="module")
def done(tiny_llama, tmp_path_factory) -> Iterator[Done]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(answers, "PROBE_TOKENS", 8)
        yield thumbs(tiny_llama, tmp_path_factory.mktemp("run"))


def test_the_plan_counts_thumbs_and_prints_their_weights(done):
    weights = done.record["recipe"]["loss"]["options"]
    origin = done.record["provenance"]["loss.options"]
    up, down = (int(word) for word in origin.replace(",", " ").split() if word.isdigit())
    assert up + down == done.record["plan"]["thumbs"]
    assert weights == balanced_weights(up, down)
    assert weights["undesirable_weight"] > 1
    assert f"{up} up weigh 1, {down} down weigh {weights['undesirable_weight']:.3g}" in done.out
    assert done.record["data"]["kind"] == "thumbs"


def test_the_run_starts_at_its_reference_with_half_of_the_weights(done):
    proof = done.record["reference"]["proof"]
    assert proof["loss"] == pytest.approx(proof["expected"], abs=1e-6)
    assert proof["reference_point"] == pytest.approx(0, abs=1e-5)
    assert "prompts with answers from the cache" in done.out


def test_metrics_have_rewards_of_both_thumbs_and_the_reference_point(done):
    train = [row for row in done.lines("metrics.jsonl") if "loss" in row]
    held_out = [row for row in done.lines("metrics.jsonl") if "eval/loss" in row]
    assert len(train) == 4
    names = {"kl", "loss/preference", "loss/sft", "rewards/accuracies", "logps/chosen", "rewards/chosen"}
    assert all(names <= row.keys() for row in train)
    assert all(row["kl"] >= 0 for row in train)
    assert all({f"eval/{name}" for name in (*names, "rewards/rejected")} <= row.keys() for row in held_out)
    last = held_out[-1]
    assert last["eval/rewards/margins"] == pytest.approx(
        last["eval/rewards/chosen"] - last["eval/rewards/rejected"], abs=1e-6
    )


def test_held_out_thumbs_stand_against_each_other_and_the_verdict_says_so(done):
    rows = done.lines("held_out.jsonl")
    assert rows
    for row in rows:
        assert row["before"]["margin"] == 0
        gained = [
            row["after"][f"{side}_logp"] - row["before"][f"{side}_logp"] for side in ("chosen", "rejected")
        ]
        assert row["after"]["margin"] == pytest.approx(0.5 * (gained[0] - gained[1]), abs=1e-6)
    found = verdict.judge(done.path)
    assert f"On {len(rows)} held-out thumbs up, each against a thumb down, the answer" in found.sentences[0]
    assert "have no opposite" in done.out


def test_the_page_speaks_of_thumbs_and_has_no_empty_pictures(done):
    page = (done.path / "report.html").read_text(encoding="utf-8")
    assert "thumb up, held out" in page
    assert "from which gains are measured" in page or all(
        row.get("kl", 0) == 0 for row in read(done.path).metrics
    )


def test_pairs_train_as_two_thumbs_each_and_apo_measures_from_zero(tiny_llama, tmp_path):
    found = thumbs(tiny_llama, tmp_path, "train.max_steps=1", lines=small.rows(8), out=tmp_path / "kto")
    assert found.record["data"]["kept"] == 16
    assert "each pair is taken as a thumb up and a thumb down" in found.out
    apo = dpo(tiny_llama, tmp_path, "loss.name=apo_zero_unpaired", "train.max_steps=1", out=tmp_path / "apo")
    assert not any("kl" in row for row in apo.lines("metrics.jsonl"))
    assert f"{found.record['data']['kept'] // 2} of" in apo.out  # the answers themselves were computed before


def test_the_second_run_takes_every_mismatched_answer_from_the_cache(tiny_llama, tmp_path):
    first = thumbs(tiny_llama, tmp_path, "train.max_steps=2", out=tmp_path / "first")
    second = thumbs(tiny_llama, tmp_path, "train.max_steps=2", "loss.beta=0.9", out=tmp_path / "second")
    count = (
        next(line for line in second.out.splitlines() if "from the cache" in line).split(" of ")[1].split()[0]
    )
    assert f"{count} of {count} prompts with answers" in second.out
    assert f"0 of {count} prompts with answers" in first.out


def test_given_weights_stay(tiny_llama, tmp_path):
    found = thumbs(tiny_llama, tmp_path, "loss.options={desirable_weight: 3}", "train.max_steps=1")
    assert found.record["recipe"]["loss"]["options"] == {"desirable_weight": 3}
    assert "up weigh 3, " in found.out


def test_a_prompt_under_which_no_other_answer_fits_is_counted(tiny_llama, tmp_path):
    """A prompt of 40 words, and three answers of 40 words: together they have more than the 70 tokens of a row."""
    lines = [
        {"prompt": f"{n} " + "dog " * n, "completion": "fox " * m + f"{n}", "label": n % 2 == 0}
        for n, m in ((40, 2), (3, 40), (4, 40), (5, 40))
    ]
    sets = ("data.held_out=0", "data.max_length=70", "train.max_steps=1")
    found = thumbs(tiny_llama, tmp_path, *sets, lines=lines)
    assert found.path is not None
    assert "1 times in this run no answer fits under the prompt of a thumb" in " ".join(found.out.split())


def test_one_kind_of_thumb_that_is_held_out_altogether_is_told(tiny_llama, tmp_path):
    lines = [dict(row, label=number > 0) for number, row in enumerate(LINES)]
    held = small.write(tmp_path / "held.jsonl", [dict(lines[0], prompt="Another?"), lines[5]])
    small.write(tmp_path / "rows.jsonl", lines)
    with pytest.raises(DataError, match="LA309"):
        thumbs(tiny_llama, tmp_path, f"data.held_out_path={held}", lines=lines[1:])


def rated(*rows: tuple[str, str, bool]) -> list[Rated]:
    return [
        Rated(
            Source("f", n),
            category,
            prompt=(Message("user", prompt),),
            answer=(Message("assistant", str(n)),),
            label=up,
        )
        for n, (prompt, category, up) in enumerate(rows)
    ]


def test_opposites_are_of_one_prompt_else_of_one_category_else_any():
    rows = rated(
        ("a", "x", True),
        ("b", "x", False),
        ("c", "y", False),
        ("a", "x", False),
        ("d", "x", True),
        ("e", "z", True),
        ("f", "z", True),
    )
    assert opposites(rows) == [(0, 3), (4, 1), (5, 2)]
    assert opposites(rows[:1]) == []
    assert opposites(rated(("a", "x", False), ("b", "x", False), ("c", "x", True))) == [(2, 0)]


def test_json_of_a_dry_run_writes_nothing(tiny_llama, tmp_path):
    found = thumbs(tiny_llama, tmp_path, dry_run=True)
    assert found.path is None
    assert not (tmp_path / "out").exists()
    assert json.dumps("kto")[1:-1] in found.out
