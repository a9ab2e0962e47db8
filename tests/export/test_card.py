"""The model card: figures, how to load, and nothing that foreign text could turn into markup."""

from dataclasses import replace

import pytest

from lite_align.export import Kind, card
from lite_align.export.probes import Agreement
from lite_align.train.finished import read_finished
from tests import finished

HUB = card.Base("owner/model", "0123abcd", "ff" * 32)


@pytest.fixture
def run(tmp_path, tiny_llama):
    return read_finished(finished.run(tmp_path / "run-1", tiny_llama))


def text(run, kind, base=HUB, checked=None, notes=()):
    return card.write(run, kind, base, checked, notes).decode()


def test_a_hub_base_is_linked_and_pinned(run):
    said = text(run, Kind.ADAPTER)
    assert said.startswith('---\nbase_model: "owner/model"\nlibrary_name: peft\n')
    assert 'from_pretrained("owner/model", revision="0123abcd")' in said
    assert "# run-1\n\nA LoRA adapter for `owner/model`" in said
    assert "## Held-out verdict: better" in said
    assert "- Data: `rows.jsonl`, 20 rows used" in said


def test_a_local_base_is_not_linked(run):
    said = text(run, Kind.MERGED, card.Base("tiny", None, "ff" * 32))
    assert "base_model" not in said
    assert "revision" not in said


def test_the_figures_of_all_candidates_and_the_bounds_stand_in_it(run):
    figures = {
        "the base": Agreement(1.4e-3, 0.992, 0.9, 505),
        "the unpacked base": Agreement(3e-5, 0.998, 1.0, 505),
    }
    said = text(
        run, Kind.MERGED, checked=card.Checked(figures, "the unpacked base", 1.6e-3, 20), notes=["Beware."]
    )
    assert "| the base | 1.4e-03 | 99.2 % | 90.0 % |" in said
    assert "| the unpacked base (this export) | 3.0e-05 | 99.8 % | 100.0 % |" in said
    assert "KL 0.001 at most, same top token 98 % at least" in said
    assert "## Notes\n\n- Beware." in said


def test_foreign_text_writes_no_markup(run):
    evil = {**run.record, "data": {"name": "a`<script>alert(1)</script>\n# x", "kept": 1}}
    said = text(replace(run, record=evil), Kind.ADAPTER)
    assert "<script" not in said
    assert "\n# x" not in said
