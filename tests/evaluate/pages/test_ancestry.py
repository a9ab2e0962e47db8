"""Where a run comes from: found by hash, drawn as far as the folders are there."""

import json
from pathlib import Path

from lite_align.evaluate.folder import read
from lite_align.evaluate.pages.ancestry import Ancestor, tree

BASE = {"model": {"name": "tiny"}, "hashes": {"base": "b" * 64}}


def run(folder: Path, stage: str, adapter: str, *parents: dict, **more: object) -> Path:
    folder.mkdir(parents=True)
    record = {"stage": stage, "parents": list(parents), "adapters": {"policy": adapter}, **BASE, **more}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def parent(name: str, stage: str, adapter: str) -> dict:
    return {"run": name, "stage": stage, "role": "policy", "adapter": adapter}


def outline(one: Ancestor) -> list:
    return [one.name, one.what, *map(outline, one.parents)]


def test_parents_of_parents_are_found_beside_the_run_and_end_at_the_base(tmp_path: Path) -> None:
    run(tmp_path / "sft", "sft", "a1", verdict={"word": "better"})
    run(tmp_path / "reward", "reward", "r1", parent("runs/sft", "sft", "a1"))
    run(tmp_path / "dpo", "dpo", "d1", parent("runs/sft", "sft", "a1"))
    ppo = run(
        tmp_path / "ppo",
        "ppo",
        "p1",
        parent("elsewhere/dpo", "dpo", "d1"),
        recipe={"ppo": {"reward": "runs/reward"}},
        hashes={"reward": "r1"},
    )
    sft = ["runs/sft", "sft", ["tiny", "base"]]
    found = tree(read(ppo))
    assert outline(found) == ["ppo", "ppo", ["elsewhere/dpo", "dpo", sft], ["runs/reward", "reward", sft]]
    assert found.note == "this run"
    assert found.parents[0].parents[0].note == "adapter a1 · better"
    assert found.parents[0].parents[0].parents[0].note == "sha bbbbbbbbbbbb"


def test_a_folder_with_another_adapter_is_not_the_parent(tmp_path: Path) -> None:
    run(tmp_path / "sft", "sft", "other")
    dpo = run(tmp_path / "dpo", "dpo", "d1", parent("runs/sft", "sft", "a1"))
    (found,) = tree(read(dpo)).parents
    assert (found.name, found.parents) == ("runs/sft", [])
    assert "not here any more" in found.note


def test_an_adapter_and_what_is_no_record_are_leaves(tmp_path: Path) -> None:
    odd = run(tmp_path / "dpo", "dpo", "d1", parent("/adapters/x", "", "f" * 64), "oops")  # type: ignore[arg-type]
    assert outline(tree(read(odd))) == ["dpo", "dpo", ["/adapters/x", "adapter"], ["oops", ""]]


def test_a_circle_of_records_ends(tmp_path: Path) -> None:
    run(tmp_path / "a", "sft", "a1", parent("b", "sft", "b1"))
    run(tmp_path / "b", "sft", "b1", parent("a", "sft", "a1"))
    depth, at = 0, tree(read(tmp_path / "a"))
    while at.parents:
        depth, at = depth + 1, at.parents[0]
    assert depth < 30
