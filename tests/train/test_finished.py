"""Finished runs: what is refused, the roles that are loaded, and adapters that PEFT alone can load."""

import json

import pytest
import torch

from lite_align.data import forest
from lite_align.data.types import Rendered
from lite_align.errors import UserError
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions
from lite_align.train.finished import attach, read_finished, require_policy
from tests import finished

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_what_is_no_finished_run_is_refused(tmp_path, tiny_llama):
    with pytest.raises(UserError, match="not a run folder"):
        read_finished(tmp_path)
    folder = finished.run(tmp_path / "run", tiny_llama, status="interrupted")
    with pytest.raises(UserError, match=r"not finished \(status interrupted\)"):
        read_finished(folder)


def test_a_run_without_a_policy_says_why(tmp_path, tiny_llama):
    folder = finished.run(tmp_path / "run", tiny_llama)
    (folder / "adapters" / "policy").rename(folder / "adapters" / "reward")
    with pytest.raises(UserError, match="no adapter to chat with"):
        require_policy(read_finished(folder), "to chat with")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(
        json.dumps({**record, "stage": "reward", "recipe": {**record["recipe"]}})
    )
    with pytest.raises(UserError, match="scores answers and writes none"):
        require_policy(read_finished(folder), "to chat with")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_peft_alone_loads_the_policy_with_the_same_logits(tmp_path, tiny_llama, quantization):
    from peft import PeftModel

    from lite_align.model.load import load_model
    from lite_align.recipe import ModelOptions

    folder = finished.run(tmp_path / "run", tiny_llama, quantization=quantization)
    backbone = read_finished(folder).backbone("cpu")
    options = ModelOptions.model_validate(
        {"name": str(tiny_llama), "quantization": quantization, "dtype": "float32"}
    )
    base = load_model(options, device="cpu").model
    plain = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(folder / "adapters" / "policy")))
    torch.testing.assert_close(found, logits(backbone.model), rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 0.1  # the adapter does something
    with backbone.role(Role.BASE):
        torch.testing.assert_close(logits(backbone.model), plain, rtol=1e-4, atol=1e-5)


def test_a_run_that_went_on_has_three_different_roles(tmp_path, tiny_llama):
    backbone = read_finished(finished.run(tmp_path / "run", tiny_llama, reference=True)).backbone("cpu")
    seen = []
    for role in (Role.POLICY, Role.REFERENCE, Role.BASE):
        with backbone.role(role):
            seen.append(logits(backbone.model))
    assert (
        min((a - b).abs().max() for a, b in ((seen[0], seen[1]), (seen[1], seen[2]), (seen[0], seen[2])))
        > 0.1
    )


def test_a_role_takes_an_adapter_of_another_shape(tmp_path, tiny_llama):
    """What follows is what a fresh backbone with that adapter alone would say; other roles stay as they were."""
    first = read_finished(finished.run(tmp_path / "first", tiny_llama, reference=True))
    shape = LoraOptions(rank=2, alpha=6.0, targets=("q_proj", "v_proj"))
    second = read_finished(finished.run(tmp_path / "second", tiny_llama, lora=shape, size=0.3))
    backbone, alone = first.backbone("cpu"), second.backbone("cpu")
    with backbone.role(Role.REFERENCE):
        reference = logits(backbone.model)
    attach(backbone, Role.POLICY, second.adapter(Role.POLICY))
    assert backbone.shape(Role.POLICY) == (2, 3.0, frozenset(("q_proj", "v_proj")))
    with backbone.role(Role.POLICY), alone.role(Role.POLICY):
        assert torch.equal(logits(backbone.model), logits(alone.model))
    with backbone.role(Role.REFERENCE):
        assert torch.equal(logits(backbone.model), reference)
    attach(backbone, Role.POLICY, first.adapter(Role.POLICY))
    with backbone.role(Role.POLICY), first.backbone("cpu").role(Role.POLICY):
        again = logits(backbone.model)
    fresh = first.backbone("cpu")
    with fresh.role(Role.POLICY):
        assert torch.equal(again, logits(fresh.model))


def scores(backbone: Backbone) -> torch.Tensor:
    rendered = Rendered((1, 20, 30, 40, 50, 60), (False,) * 3 + (True,) * 3)
    with torch.no_grad(), backbone.role(Role.REWARD):
        return backbone.scores(forest.batch([forest.single(0, rendered)]))


def test_a_reward_of_another_shape_comes_with_its_head(tmp_path, tiny_llama):
    """First where there was none, then in the place of another, then of one with the same shape."""
    run = read_finished(finished.run(tmp_path / "run", tiny_llama))
    backbone = run.backbone("cpu")
    policy = logits(backbone.model)
    narrow = LoraOptions(rank=2, alpha=6.0, targets=("q_proj", "v_proj"))
    for number, shape in enumerate((finished.LORA, narrow, narrow)):
        model = load_model(run.recipe.model, device="cpu")
        alone = Backbone(model, shape, seed=0, role=Role.REWARD)
        finished.move(alone, Role.REWARD, 0.2, seed=number)
        alone.save_adapter(Role.REWARD, tmp_path / str(number))
        before = dict(backbone.parameters(Role.REWARD)) if number else {}
        attach(backbone, Role.REWARD, tmp_path / str(number))
        kept = [before.get(name) is one for name, one in backbone.parameters(Role.REWARD)]
        assert all(kept) if number == 2 else not any(kept)  # the same shape is filled in place
        assert torch.equal(scores(backbone), scores(alone))
        assert backbone.adapter_sha256(Role.REWARD) == alone.adapter_sha256(Role.REWARD)
        assert not any(parameter.requires_grad for _, parameter in backbone.parameters(Role.REWARD))
        assert torch.equal(logits(backbone.model), policy)
