"""Which judge a name means, and that its base is the right one."""

from pathlib import Path

import pytest

from lite_align.data.render import Renderer
from lite_align.errors import UserError
from lite_align.flywheel.judges.endpoint import EndpointJudge
from lite_align.flywheel.judges.opening import Asked, Local, load_local, open_judge
from lite_align.flywheel.judges.reward import RewardJudge
from lite_align.recipe import ModelOptions
from lite_align.train.faults import TokenBudget
from tests import finished
from tests.stages.test_scorer import reward_run


def never(run):
    raise AssertionError("no base is needed")


@pytest.mark.parametrize(
    ("by", "kind"),
    [
        ("base", "base"),
        ("runs/my-reward", "reward"),
        ("http://127.0.0.1:8000/v1", "endpoint"),
        ("https://host/v1/judge.py:8", "endpoint"),
        ("mine.py:better", "function"),
        ("folder/mine.py:better", "function"),
        ("./base", "reward"),
    ],
)
def test_the_form_of_a_name_says_what_it_is(by, kind):
    assert Asked(by=by).kind == kind


def test_an_endpoint_needs_a_model_and_loads_nothing():
    judge = open_judge(Asked(by="http://127.0.0.1:1/v1", model="m", seconds=3.0), never)
    assert isinstance(judge, EndpointJudge)
    judge.close()
    with pytest.raises(UserError, match="Which model of http"):
        open_judge(Asked(by="http://127.0.0.1:1/v1"), never)


def test_a_function_reads_no_rubric_and_loads_nothing(tmp_path):
    (tmp_path / "mine.py").write_text("def f(): return 'a'")
    open_judge(Asked(by=f"{tmp_path}/mine.py:f"), never).close()
    with pytest.raises(UserError, match="does not read a rubric"):
        open_judge(Asked(by=f"{tmp_path}/mine.py:f", rubric=Path("r.yaml")), never)


def test_a_reward_run_judges_on_its_own_base_alone(tmp_path, tiny_llama, tokenizer):
    reward_run(tmp_path / "reward", tiny_llama)
    judge = open_judge(Asked(by=str(tmp_path / "reward")), lambda run: load_local(run.recipe.model))
    assert isinstance(judge, RewardJudge)
    other = finished.run(tmp_path / "policy", finished.model(tmp_path / "base", tokenizer, tied=True))
    from lite_align.train.finished import read_finished

    backbone = read_finished(other).backbone("cpu")
    local = Local(backbone, Renderer(backbone.loaded.tokenizer), TokenBudget(64), 512)
    with pytest.raises(UserError, match="on another base") as caught:
        open_judge(Asked(by=str(tmp_path / "reward")), lambda run: local)
    assert len(caught.value.details) == 2


def test_what_is_no_reward_run_is_refused(tmp_path, tiny_llama):
    policy = finished.run(tmp_path / "policy", tiny_llama)
    with pytest.raises(UserError, match=r"is no reward run \(dpo\)"):
        open_judge(Asked(by=str(policy)), never)


def test_a_base_is_loaded_as_for_training(tiny_llama):
    local = load_local(ModelOptions.model_validate({"name": str(tiny_llama), "quantization": "none"}))
    assert local.positions == 512
    assert local.backbone.loaded.name == str(tiny_llama)
    assert local.renderer.stop_ids
