"""Held-out pairs of a policy: a file of their own, or exactly those that the reward run has not seen."""

import io
from pathlib import Path

import pytest

from lite_align.data.render import Renderer
from lite_align.data.types import Tree
from lite_align.errors import DataError
from lite_align.recipe import PairDataOptions, PPOOptions
from lite_align.stages import rows
from lite_align.stages.judge_pairs import held_out_pairs
from lite_align.stages.pairs import PAIRS
from lite_align.stages.reward_model import reward_of
from lite_align.view import View
from tests.stages import small, small_ppo

COUNT, SEED = 20, 7


def trees_of(pairs: list[Tree]) -> list[tuple]:
    return [(tree.root, tree.leaves) for tree in pairs]


class Judge:
    """A reward run on a file of pairs, and what is found for a policy that learns from it."""

    def __init__(self, folder: Path, base: Path, tokenizer, **data: object) -> None:
        self.renderer = Renderer(tokenizer, trusted=True)
        self.file = small.write(folder / "pairs.jsonl", small.rows(COUNT))
        self.data = {"path": str(self.file), "held_out": 0.25, **data}
        self.run = small_ppo.reward_run(folder / "reward", base, data=self.data)
        record = (self.run / "run.json").read_text()
        (self.run / "run.json").write_text(record.replace('"seed": 42', f'"seed": {SEED}'))
        self.said = io.StringIO()

    def found(self, **ppo: object) -> list[Tree]:
        recipe = small_ppo.recipe({"reward": str(self.run), **ppo})
        recipe = recipe.model_copy(update={"data": PairDataOptions(max_length=512)})
        source = reward_of(recipe.ppo, None) if recipe.ppo.reward else None
        return held_out_pairs(recipe, source, self.renderer, View(file=self.said, errors=self.said))


@pytest.fixture
def judge(tmp_path: Path, tiny_llama: Path, tokenizer) -> Judge:
    return Judge(tmp_path, tiny_llama, tokenizer)


def test_the_pairs_that_the_reward_run_held_out(judge: Judge):
    """By the reward run's own split: another seed would give some that it was trained on."""
    options = PairDataOptions.model_validate({"max_length": 512, **judge.data})
    read = rows.read(PAIRS, options, options.path)
    examples = rows.render(PAIRS, read.rows, judge.renderer, options).examples
    expected, other = (
        trees_of([tree for _, tree in rows.hold_out(PAIRS, examples, options, seed)[1]]) for seed in (SEED, 8)
    )
    assert trees_of(judge.found()) == expected
    assert len(expected) == COUNT / 4
    assert expected != other
    assert judge.said.getvalue() == ""


def test_a_file_that_has_changed_since_gives_none(judge: Judge):
    judge.file.write_text(judge.file.read_text().replace("the", "a", 1))
    assert judge.found() == []
    assert "has changed since" in " ".join(judge.said.getvalue().split())


def test_a_file_that_is_gone_gives_none_and_it_is_said(judge: Judge):
    judge.file.unlink()
    assert judge.found() == []
    assert "held-out pairs of" in " ".join(judge.said.getvalue().split())


def test_a_held_out_file_of_the_reward_run_is_taken_whole(tmp_path: Path, tiny_llama: Path, tokenizer):
    other = small.write(tmp_path / "held_out.jsonl", small.rows(6, seed=9))
    judge = Judge(tmp_path, tiny_llama, tokenizer, held_out_path=str(other))
    assert len(judge.found()) == 6


def test_a_file_of_the_recipe_goes_first_and_must_be_readable(judge: Judge, tmp_path: Path):
    own = small.write(tmp_path / "own.jsonl", small.rows(3, seed=5))
    assert len(judge.found(pairs=str(own))) == 3
    assert len(judge.found(reward=None, pairs=str(own))) == 3
    with pytest.raises(DataError):
        judge.found(pairs=str(tmp_path / "missing.jsonl"))


def test_without_a_reward_model_there_are_none(judge: Judge):
    assert PPOOptions().pairs is None
    assert judge.found(reward=None) == []
