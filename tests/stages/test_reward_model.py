"""The reward run that PPO learns from: what is refused, what is kept, and what its scores count."""

import io
import json
import shutil
from pathlib import Path

import pytest

from lite_align.data.types import Message
from lite_align.errors import LiteAlignError, TrainingStopped, UserError
from lite_align.model.backbone import Role, adapter_digest
from lite_align.model.folder import fingerprint
from lite_align.recipe import ModelOptions, PPOOptions
from lite_align.stages import scoring
from lite_align.stages.reward_model import reward_of, suffix_ids
from lite_align.stages.train_ppo import PPOProcedure, require_sound
from lite_align.train.run import Run
from lite_align.view import View
from tests.stages import small, small_ppo


@pytest.fixture(scope="module")
def reward(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_ppo.reward_run(tmp_path_factory.mktemp("reward"), tiny_llama)


@pytest.fixture
def run(tmp_path: Path):
    with Run.create(stage="ppo", recipe={"stage": "ppo"}, provenance={}, out=tmp_path / "run") as made:
        yield made


def options(folder: Path | str, **more: object) -> PPOOptions:
    return PPOOptions.model_validate({"reward": str(folder), **more})


def found(folder: Path):
    source = reward_of(options(folder), None)
    assert source is not None
    return source


def refused(folder: Path | str, **more: object) -> UserError:
    with pytest.raises(LiteAlignError) as told:
        PPOProcedure().inputs(small_ppo.recipe({"reward": str(folder), **more}), None)
    assert told.value.exit_code == 2
    assert isinstance(told.value, UserError)
    return told.value


def test_no_reward_model_is_none():
    assert reward_of(PPOOptions(), None) is None


def test_a_copy_is_kept_and_used_from_then_on(reward: Path, run: Run, tmp_path: Path):
    first = found(reward)
    assert first.sha256 == adapter_digest(reward / "adapters" / "reward")
    kept = first.keep(run)
    assert kept.adapter == run.path / "adapters" / "reward"
    assert kept.keep(run) is kept
    assert run.record["reward_model"] == {
        "run": str(reward),
        "adapter": first.sha256,
        "scale": {"mean": 0.5, "std": 2.0, "judge_suffix": None},
    }
    again = reward_of(options(tmp_path / "it is gone"), run.path)  # a resumed run does not need the other one
    assert again is not None
    assert (again.sha256, again.name, again.kept) == (first.sha256, str(reward), True)
    assert again.record["scale"] == first.record["scale"]
    assert again.record["hashes"] == first.record["hashes"]
    require_sound(again, options(reward))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_copy_that_was_changed_is_refused(reward: Path, run: Run, name: str, how: str):
    found(reward).keep(run)
    file = run.path / "adapters" / "reward" / name
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif name == "adapter_config.json":
        file.write_text(file.read_text().replace('"lora_alpha": 16', '"lora_alpha": 17'))
    else:
        data[-1] ^= 1
        file.write_bytes(data)
    with pytest.raises(TrainingStopped, match="is not the reward model that this run started with"):
        reward_of(options(reward), run.path)


# What is refused.


def test_what_is_no_finished_reward_run(reward: Path, tmp_path: Path):
    assert "is not a run folder" in refused(tmp_path / "nothing").what
    for change, words in (
        ({"status": "interrupted"}, "is not finished"),
        ({"stage": "dpo"}, "is no reward run (dpo)"),
    ):
        folder = tmp_path / str(change)
        shutil.copytree(reward, folder)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | change))
        assert words in refused(folder).what
    folder = tmp_path / "without adapter"
    shutil.copytree(reward, folder)
    shutil.rmtree(folder / "adapters")
    assert "is no reward run" in refused(folder).what


RIGHT, WRONG = (1.0, 0.0, 5, 9), (0.0, 1.0, 9, 5)
LENGTH = [(float(n), float(-n), 10 + n, 10 - n) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([RIGHT, WRONG], "ranks 50 % of held-out pairs right, below 60 %"),
        (LENGTH, "its scores go with length (correlation +1.00"),
        ([(a, b, 30 - c, 30 - d) for a, b, c, d in LENGTH], "its scores go with length (correlation -1.00"),
        ([], "no held-out pair was scored"),
    ],
)
def test_a_weak_one_is_refused_unless_it_is_forced(tiny_llama, tmp_path, rows, words: str):
    weak = small_ppo.reward_run(tmp_path / "weak", tiny_llama, held_out=rows)
    error = refused(weak)
    assert "too weak to optimise for" in error.what
    assert any(words in line for line in error.details)
    assert "--force" in error.remedy
    require_sound(found(weak), options(weak, force=True))


def test_a_sound_one_is_taken(reward: Path):
    require_sound(found(reward), options(reward))


def test_another_base_is_refused(reward: Path, tiny_llama: Path):
    own = fingerprint(tiny_llama)
    model = ModelOptions.model_validate({"name": str(tiny_llama), "quantization": "none", "dtype": "float32"})
    found(reward).require_base(model, own)
    others = [
        (model, "another hash"),
        (model.model_copy(update={"quantization": "nf4"}), own),
        (model.model_copy(update={"dtype": "bfloat16"}), own),
    ]
    for options, fingerprint_ in others:
        with pytest.raises(UserError, match="was trained on another base") as told:
            found(reward).require_base(options, fingerprint_)
        assert told.value.exit_code == 2
        assert len(told.value.details) == 2


# What its scores count.


def test_scores_count_as_the_reward_run_measured_them(reward: Path, tokenizer):
    from lite_align.data.render import Renderer

    renderer = Renderer(tokenizer, trusted=True)
    one = found(reward).model_reward(
        options(reward, reward_weight=2.0, reward_clip=3.0), renderer, small.silent()
    )
    assert (one.mean, one.deviation, one.weight, one.clip) == (0.5, 2.0, 2.0, 3.0)
    assert (one.suffix, one.stop) == ((), renderer.turn_end)


@pytest.mark.parametrize("scale", [{}, {"mean": 1.0, "std": 0.0}, {"mean": None, "std": 1.0}])
def test_without_a_scale_they_count_as_they_are_and_it_is_said(tiny_llama, tokenizer, tmp_path, scale):
    from lite_align.data.render import Renderer

    folder = small_ppo.reward_run(tmp_path / "reward", tiny_llama, reward=scale)
    out = io.StringIO()
    one = found(folder).model_reward(
        options(folder), Renderer(tokenizer, trusted=True), View(file=out, errors=out)
    )
    assert (one.mean, one.deviation) == (0.0, 1.0)
    assert "does not say how its scores are spread" in " ".join(out.getvalue().split())


def test_the_judges_turn_follows_the_answer(tiny_llama, tokenizer, tmp_path):
    from lite_align.data.render import Renderer

    renderer = Renderer(tokenizer, trusted=True)
    scale = {"mean": 0.0, "std": 1.0, "judge_suffix": "the question?"}
    folder = small_ppo.reward_run(tmp_path / "reward", tiny_llama, reward=scale)
    one = found(folder).model_reward(options(folder), renderer, small.silent())
    assert one.suffix == suffix_ids(renderer, "the question?")
    text = str(tokenizer.decode(one.suffix))
    assert "user\nthe question?<|im_end|>" in text
    example = ((Message("user", "why?"),), (Message("assistant", "so"),))
    (rendered,) = scoring.sequences(renderer, [example], "the question?")
    assert rendered.ids[-len(one.suffix) :] == one.suffix


def test_the_role_is_where_everybody_looks_for_it(reward: Path):
    assert found(reward).adapter == reward / "adapters" / Role.REWARD.value
