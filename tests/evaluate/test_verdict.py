"""Each stage has its own judge; a run of an unknown stage is judged as preference training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_align.evaluate import preference, verdict
from lite_align.evaluate.folder import read
from lite_align.recipe import STAGES


def test_a_folder_is_judged_by_its_stage(build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build()
    expected = preference.judge(read(folder))
    assert verdict.judge(folder) == expected
    record = json.loads((folder / "run.json").read_text())
    other = verdict.Verdict("worse", ["as told"], [])
    monkeypatch.setitem(verdict.JUDGES, "sft", lambda _: other)
    for stage, found in (("sft", other), ("dpo", expected), ("unheard of", expected)):
        (folder / "run.json").write_text(json.dumps({**record, "stage": stage}))
        assert verdict.judge(folder) == found


def test_judges_are_of_known_stages() -> None:
    assert set(verdict.JUDGES) <= set(STAGES)
