"""Roles on one base: what a switch changes and what it must not, under every order, with and without recomputation."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import save_file
from transformers import Lfm2Config, Lfm2ForCausalLM

from lite_align.data import forest
from lite_align.data.types import Rendered
from lite_align.errors import ModelError
from lite_align.model import attention
from lite_align.model.backbone import Backbone, Role, adapter_digest
from lite_align.model.load import load_model
from lite_align.model.logps import OwnHead
from lite_align.recipe import LoraOptions, ModelOptions, SpeedOptions

SHAPE = LoraOptions(rank=4, alpha=8.0)


def backbone(
    folder: Path | str,
    quantization: str = "none",
    dtype: str = "float32",
    *,
    options: LoraOptions = SHAPE,
    moved: bool = True,
) -> Backbone:
    """A backbone whose POLICY has `moved` away from its start (B is random)."""
    chosen = ModelOptions.model_validate({"name": str(folder), "quantization": quantization, "dtype": dtype})
    it = Backbone(load_model(chosen, device="cpu"), options, seed=0)
    if moved:
        move(it, 1)
    return it


def move(it: Backbone, seed: int, role: Role = Role.POLICY) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in it.parameters(role):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def sequences(prompt: int, *answers: int, seed: int = 0) -> list[Rendered]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 300, (n,), generator=generator).tolist())

    root = ids(prompt)
    return [Rendered(root + ids(n), (False,) * prompt + (True,) * n) for n in answers]


ROWS = [sequences(9, 5, 7, seed=1), sequences(4, 6, 3, seed=2), sequences(12, 2, 4, 3, seed=3)]
BATCH = forest.batch([forest.grow(key, rows) for key, rows in enumerate(ROWS)], pad_to=8)


def alone(it: Backbone, rows: Sequence[Rendered]) -> torch.Tensor:
    """Log-prob of each answer from the model's own logits, one unpadded row at a time."""
    values = []
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = it.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        start = row.trained.index(True)
        values.append(logits[start - 1 : -1].gather(1, ids[0, start:, None]).sum())
    return torch.stack(values)


def gradients(it: Backbone) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in it.parameters(Role.POLICY) if p.grad is not None}
    it.model.zero_grad()
    return found


def loss(it: Backbone) -> torch.Tensor:
    values = it.leaf_logps(BATCH)
    return (values * torch.linspace(-1, 1, len(values))).sum()


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).norm() <= tolerance * theirs[name].norm() + 1e-12, name


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_policy_starts_as_the_reference(tiny_llama: Path, quantization: str):
    it = backbone(tiny_llama, quantization, moved=False)
    assert it.shares_prefixes
    assert it.current_role is Role.POLICY
    policy = it.leaf_logps(BATCH)
    with it.role(Role.REFERENCE), torch.no_grad():
        reference = it.leaf_logps(BATCH)
    assert policy.requires_grad
    assert torch.equal(policy, reference)


@pytest.mark.parametrize("role", [Role.POLICY, Role.REFERENCE, Role.BASE])
def test_log_probs_equal_separate_rows(tiny_llama: Path, role: Role):
    it = backbone(tiny_llama)
    rows = [row for tree in ROWS for row in tree]
    with it.role(role):
        packed, separate = it.leaf_logps(BATCH), alone(it, rows)
    assert torch.allclose(packed, separate, atol=1e-4)
    if role is Role.POLICY:
        packed.mean().backward()
        ours = gradients(it)
        separate.mean().backward()
        assert_close(ours, gradients(it), 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_4_bit_base_trains_and_generates(tiny_llama: Path, dtype: str):
    it = backbone(tiny_llama, "nf4", dtype)
    before = it.base_sha256()
    loss(it).backward()
    found = gradients(it)
    assert len(found) == 2 * 7 * 2
    assert all(value.dtype == torch.float32 and value.abs().max() > 0 for value in found.values())
    answers = it.generate([(1, 20, 30), (1, 5)], stop_ids=frozenset({2}), max_new_tokens=4)
    assert [0 < len(answer) <= 4 for answer in answers] == [True, True]
    assert it.base_sha256() == before
    # The same gradients after an eval-mode forward: nothing was repacked.
    loss(it).backward()
    assert_close(gradients(it), found, 0.0)


def test_samples_are_the_current_role_s(tiny_llama: Path):
    """Greedily the same as `generate` for each role, though blocks recompute."""
    it = backbone(tiny_llama)
    it.recompute(1)
    prompts = [(1, 20, 30), (1, 5)]
    answers = {}
    for role in (Role.POLICY, Role.BASE):
        with it.role(role):
            found = it.sample(prompts, stop_ids=frozenset({2}), max_new_tokens=8, temperature=0)
            answers[role] = [group[0].ids for group in found]
            assert answers[role] == it.generate(prompts, stop_ids=frozenset({2}), max_new_tokens=8)
    assert answers[Role.POLICY] != answers[Role.BASE]
    assert it.model.training
    assert not it.notes


# Switching.


def flags(it: Backbone) -> list[bool]:
    return [parameter.requires_grad for parameter in it.model.parameters()]


def modes(it: Backbone) -> list[bool]:
    return [module.training for module in it.model.modules()]


@pytest.fixture(scope="module")
def shared(tiny_llama: Path) -> Backbone:
    """A backbone with a REFERENCE adapter that differs from POLICY, for tests that change nothing."""
    it = backbone(tiny_llama)
    it.fix_reference("adapter")
    it.add(Role.REWARD, LoraOptions(rank=2, alpha=2.0, targets=("q_proj", "up_proj")))
    move(it, 2)
    move(it, 3, Role.REWARD)
    return it


STEPS = st.recursive(
    st.sampled_from(["forward", "error", "generate"]),
    lambda inner: st.tuples(st.sampled_from(list(Role)), st.lists(inner, max_size=4)),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=5))
def test_any_order_of_roles_restores_everything(shared: Backbone, steps: list):
    it = shared
    ids = BATCH.input_ids[:, :6]

    @torch.no_grad()
    def look() -> torch.Tensor:
        return it.model(input_ids=ids, use_cache=False).logits

    expected = {}
    for role in Role:
        with it.role(role):
            expected[role] = look()
    assert len({value.numpy().tobytes() for value in expected.values()}) == len(Role)
    before = (flags(it), modes(it))

    def walk(step) -> None:
        role = it.current_role
        if step == "error":
            with pytest.raises(ZeroDivisionError), it.role(Role.REFERENCE):
                raise ZeroDivisionError
        elif step == "generate":
            it.generate([(1, 7)], stop_ids=frozenset(), max_new_tokens=1)
        elif step != "forward":
            with it.role(step[0]):
                for inner in step[1]:
                    walk(inner)
        assert it.current_role is role
        assert torch.equal(look(), expected[role])

    for step in steps:
        walk(step)
    assert (flags(it), modes(it)) == before


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["base", "adapter"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_role_between_forward_and_backward_changes_no_gradient(
    tiny_llama: Path, quantization: str, kind: str, recompute: bool
):
    """PEFT's set_adapter gives zero gradients here, and its recomputation runs under the wrong adapter."""
    it = backbone(tiny_llama, quantization)
    it.fix_reference("base" if kind == "base" else "adapter")
    loss(it).backward()
    expected = gradients(it)
    it.recompute(99 * recompute)
    value = loss(it)
    with it.role(Role.REFERENCE):
        with torch.no_grad():
            it.leaf_logps(BATCH)
        value.backward()
    found = gradients(it)
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert_close(found, expected, 1e-6)


def test_without_the_roles_context_recomputation_is_wrong(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    """No error, only wrong numbers, once the other role is trainable too (as REWARD and VALUE will be)."""
    it = backbone(tiny_llama)
    it.fix_reference("adapter")
    move(it, 2)
    for _, parameter in it.parameters(Role.REFERENCE):
        parameter.requires_grad_(True)
    loss(it).backward()
    expected = gradients(it)
    monkeypatch.setattr(it.blocks, "_contexts", lambda: (nullcontext(), nullcontext()))
    it.recompute(99)
    value = loss(it)
    with it.role(Role.REFERENCE):
        value.backward()
    found = gradients(it)
    wrong = [
        name for name in expected if name not in found or not torch.allclose(found[name], expected[name])
    ]
    assert wrong


@pytest.mark.parametrize("recompute", [False, True])
def test_losses_of_two_roles_in_one_backward(tiny_llama: Path, recompute: bool):
    it = backbone(tiny_llama)
    it.fix_reference("adapter")
    it.recompute(99 * recompute)
    loss(it).backward()
    expected = gradients(it)
    first = loss(it)
    with it.role(Role.REFERENCE):
        second = loss(it)
    (first + second).backward()
    assert_close(gradients(it), expected, 1e-6)
    assert all(parameter.grad is None for _, parameter in it.parameters(Role.REFERENCE))


def test_recomputation_saves_memory_and_asks_for_no_gradient_of_the_embedding(tiny_llama: Path):
    it = backbone(tiny_llama)
    saved = {}
    for recompute in (False, True):
        it.recompute(99 * recompute)
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = it.hidden(BATCH)
        saved[recompute] = sum(storages.values())
        assert hidden.requires_grad
    assert saved[True] < saved[False] / 3
    assert not it.model.get_input_embeddings()(BATCH.input_ids).requires_grad


def test_dropout_is_recomputed_with_the_same_mask(tiny_llama: Path):
    it = backbone(tiny_llama, options=LoraOptions(rank=4, alpha=8.0, dropout=0.3))
    found = []
    for recompute in (False, True):
        it.recompute(99 * recompute)
        torch.manual_seed(0)
        loss(it).backward()
        found.append(gradients(it))
    assert_close(found[1], found[0], 1e-6)


# Reference, files and identity.


def test_a_frozen_twin_stays_where_it_was_fixed(tiny_llama: Path):
    it = backbone(tiny_llama)
    with torch.no_grad():
        start = it.leaf_logps(BATCH)
        it.fix_reference("adapter")
        with it.role(Role.REFERENCE):
            assert torch.equal(it.leaf_logps(BATCH), start)
        identity = it.reference_identity()
        move(it, 2)
        with it.role(Role.REFERENCE):
            assert torch.equal(it.leaf_logps(BATCH), start)
        assert not torch.equal(it.leaf_logps(BATCH), start)
    assert it.reference_identity() == identity
    assert all(parameter.requires_grad for _, parameter in it.parameters(Role.POLICY))
    assert not any(parameter.requires_grad for _, parameter in it.parameters(Role.REFERENCE))
    it.fix_reference("adapter")
    assert it.reference_identity() != identity
    it.fix_reference("base")
    assert it.parameters(Role.REFERENCE) == []
    with pytest.raises(ValueError, match="base itself"):
        it.adapter_tensors(Role.REFERENCE)


def test_the_identity_depends_on_the_base_and_not_on_the_policy(tiny_llama: Path):
    first, second = backbone(tiny_llama), backbone(tiny_llama, options=LoraOptions(rank=8), moved=False)
    assert first.reference_identity() == second.reference_identity()
    assert first.reference_identity() != backbone(tiny_llama, "nf4").reference_identity()
    assert first.reference_identity() != backbone(tiny_llama, "none", "bfloat16").reference_identity()
    assert first.base_sha256() == second.base_sha256()
    assert json.dumps(first.reference_identity())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_saved_adapter_is_the_policy(tiny_llama: Path, tmp_path: Path, quantization: str):
    it = backbone(tiny_llama, quantization)
    it.save_adapter(Role.POLICY, tmp_path)
    other = backbone(tiny_llama, quantization, moved=False)
    other.load_adapter(Role.POLICY, tmp_path)
    with torch.no_grad():
        expected = it.leaf_logps(BATCH)
        assert torch.equal(other.leaf_logps(BATCH), expected)
        plain = load_model(
            ModelOptions.model_validate({"name": str(tiny_llama), "quantization": quantization}), device="cpu"
        ).model
        peft_logits = PeftModel.from_pretrained(plain, str(tmp_path))(input_ids=BATCH.input_ids[:, :9]).logits
        assert torch.allclose(it.model(input_ids=BATCH.input_ids[:, :9]).logits, peft_logits, atol=1e-5)


def test_the_built_in_model_is_named_without_a_path(tmp_path: Path):
    it = backbone("tiny", moved=False)
    it.save_adapter(Role.POLICY, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_an_adapter_with_another_scale_or_rank_is_refused(tiny_llama: Path, tmp_path: Path):
    backbone(tiny_llama).save_adapter(Role.POLICY, tmp_path)
    with pytest.raises(ModelError, match="scale") as caught:
        backbone(tiny_llama, options=LoraOptions(rank=4, alpha=4.0)).load_adapter(Role.POLICY, tmp_path)
    assert "lora.alpha=8" in caught.value.remedy
    with pytest.raises(ModelError, match="does not fit"):
        backbone(tiny_llama, options=LoraOptions(rank=8, alpha=16.0)).load_adapter(Role.POLICY, tmp_path)


def test_an_adapter_on_the_head_trains_it(tiny_llama: Path):
    options = LoraOptions(rank=4, alpha=8.0, targets=("q_proj", "lm_head"))
    it = backbone(tiny_llama, options=options)
    assert isinstance(it.head, OwnHead)
    rows = [row for tree in ROWS for row in tree]
    value = it.leaf_logps(BATCH)
    with it.role(Role.REFERENCE):
        value.mean().backward()  # the head is recomputed here, under POLICY
    ours = gradients(it)
    alone(it, rows).mean().backward()
    assert_close(ours, gradients(it), 1e-4)
    assert any("lm_head" in name for name in ours)


# Models that cannot share prompts.


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """Short convolutions mix neighbours in the row: a leaf would see the end of the leaf before it."""
    folder = tmp_path_factory.mktemp("lfm2")
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    Lfm2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_models_with_state_run_leaf_by_leaf_exactly(convolutional: Path):
    it = backbone(convolutional, options=LoraOptions(rank=4, alpha=8.0, targets="auto"))
    assert not it.shares_prefixes
    assert "conv" in it.notes[0] or "recurrent" in it.notes[0]
    rows = [row for tree in ROWS for row in tree]
    for recompute in (False, True):
        it.recompute(99 * recompute)
        packed, separate = it.leaf_logps(BATCH), alone(it, rows)
        assert torch.allclose(packed, separate, atol=1e-4)
        packed.mean().backward()
        ours = gradients(it)
        separate.mean().backward()
        assert_close(ours, gradients(it), 1e-4)


def test_the_probe_catches_what_the_configuration_hides(
    convolutional: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "can_share", lambda _: attention.Sharing(True))
    it = backbone(convolutional, options=LoraOptions(rank=4, alpha=8.0, targets="auto"))
    assert not it.shares_prefixes
    assert torch.allclose(it.leaf_logps(BATCH), alone(it, [row for tree in ROWS for row in tree]), atol=1e-4)
    monkeypatch.setattr(attention, "shares_exactly", lambda *_: False)
    it = backbone(tiny_llama)
    assert "differently than alone" in it.notes[0]
    assert torch.allclose(it.leaf_logps(BATCH), alone(it, [row for tree in ROWS for row in tree]), atol=1e-4)


# A role that scores.


def scorer(folder: Path, quantization: str = "none", *, seed: int = 0) -> Backbone:
    options = ModelOptions.model_validate({"name": str(folder), "quantization": quantization})
    return Backbone(load_model(options, device="cpu"), SHAPE, seed=seed, role=Role.REWARD)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_scores_are_read_at_the_last_token_of_each_answer(tiny_llama: Path, quantization: str):
    it = scorer(tiny_llama, quantization)
    move(it, 1, Role.REWARD)
    head = dict(it.parameters(Role.REWARD))["score.weight"]
    rows = [row for tree in ROWS for row in tree]

    def alone(row: Rendered) -> torch.Tensor:
        ids = torch.tensor([row.ids])
        return it.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1].float() @ head

    packed, separate = it.scores(BATCH), torch.stack([alone(row) for row in rows])
    assert torch.allclose(packed, separate, atol=1e-4)
    packed.square().sum().backward()
    ours = {name: value.grad.clone() for name, value in it.parameters(Role.REWARD) if value.grad is not None}
    assert len(ours) == 2 * 7 * 2 + 1
    it.model.zero_grad()
    head.grad = None
    separate.square().sum().backward()
    assert_close(ours, {n: p.grad.clone() for n, p in it.parameters(Role.REWARD) if p.grad is not None}, 1e-4)


def test_a_saved_reward_role_scores_alike_with_another_seed(tiny_llama: Path, tmp_path: Path):
    it, other = scorer(tiny_llama, "nf4"), scorer(tiny_llama, "nf4", seed=7)
    move(it, 1, Role.REWARD)
    with torch.no_grad():
        expected = it.scores(BATCH)
        assert not torch.equal(other.scores(BATCH), expected)
        it.save_adapter(Role.REWARD, tmp_path)
        other.load_adapter(Role.REWARD, tmp_path)
        assert torch.equal(other.scores(BATCH), expected)
    assert it.adapter_sha256(Role.REWARD) == other.adapter_sha256(Role.REWARD)
    assert adapter_digest(tmp_path) == it.adapter_sha256(Role.REWARD)


def test_a_head_that_does_not_fit_is_refused(tiny_llama: Path, tmp_path: Path):
    it = scorer(tiny_llama)
    it.save_adapter(Role.REWARD, tmp_path)
    before = it.adapter_tensors(Role.REWARD)
    for values, told in (
        ({"score.weight": torch.zeros(3)}, "shape"),
        ({"score.weight": torch.full_like(before["score.weight"], float("nan"))}, "not finite"),
        ({"other": torch.zeros(3)}, "not score.weight"),
    ):
        save_file(values, tmp_path / "head.safetensors")
        with pytest.raises(ModelError, match=told):
            it.load_adapter(Role.REWARD, tmp_path)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ModelError, match="no scalar head"):
        it.load_adapter(Role.REWARD, tmp_path)
    after = it.adapter_tensors(Role.REWARD)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with it.role(Role.BASE), pytest.raises(ValueError, match="base"):
        it.scores(BATCH)


def test_further_roles_change_nothing_of_the_trained_one(tiny_llama: Path):
    it = backbone(tiny_llama)
    before = it.leaf_logps(BATCH)
    before.mean().backward()
    expected, digest = gradients(it), it.adapter_sha256(Role.POLICY)
    it.add(Role.REWARD, LoraOptions(rank=8, alpha=8.0))
    assert it.current_role is Role.POLICY
    after = it.leaf_logps(BATCH)
    assert torch.equal(after, before)
    after.mean().backward()
    assert_close(gradients(it), expected, 0.0)
    assert it.adapter_sha256(Role.POLICY) == digest
    assert not any(parameter.requires_grad for _, parameter in it.parameters(Role.REWARD))


# From states.


def test_states_are_those_before_the_trained_tokens(tiny_llama: Path):
    """In the batch's order of trained tokens; and what is said of them is what is said of the batch."""
    it = backbone(tiny_llama)
    states = it.states(BATCH)
    assert torch.equal(states, it.hidden(BATCH)[BATCH.predict])
    values, entropies = it.state_statistics(states, BATCH.target)
    assert torch.equal(values, it.token_scores(BATCH)[0])
    assert torch.equal(it.state_logps(states, BATCH.target), values)
    some = torch.tensor([7, 0, 3])
    assert torch.allclose(it.state_logps(states[some], BATCH.target[some]), values[some], atol=1e-6)
    assert len(entropies) == len(values) == len(BATCH.target)


@pytest.mark.parametrize("head", ["frozen", "own"])
def test_states_at_a_temperature_equal_the_models_own_logits(tiny_llama: Path, head: str):
    """Values, entropies and the adapter's gradients, with a head that is trained too; another role is on meanwhile."""
    targets = ("q_proj", "lm_head") if head == "own" else ("q_proj", "up_proj")
    it = backbone(tiny_llama, options=LoraOptions(rank=4, alpha=8.0, targets=targets))
    assert isinstance(it.head, OwnHead) is (head == "own")
    row = sequences(9, 6, seed=4)[0]
    batch = forest.batch([forest.grow(0, [row])], pad_to=8)
    states = it.states(batch)
    values = it.state_logps(states, batch.target, 0.6)
    found, entropies = it.state_statistics(states, batch.target, 0.6)
    assert torch.equal(found, values)
    assert not found.requires_grad
    with it.role(Role.REFERENCE):
        values.square().sum().backward()
    ours = gradients(it)
    ids = torch.tensor([row.ids])
    logits = it.model(input_ids=ids, use_cache=False).logits[0, 8:-1].double() / 0.6
    expected = logits.log_softmax(-1)
    chosen = expected.gather(1, ids[0, 9:, None])[:, 0]
    assert torch.allclose(values.double(), chosen, atol=1e-4)
    assert torch.allclose(entropies.double(), -(expected.exp() * expected).sum(1), atol=1e-4)
    chosen.square().sum().backward()
    assert_close(ours, gradients(it), 1e-4)
    with it.role(Role.REFERENCE):
        base = it.state_statistics(it.states(batch), batch.target, 0.6)[0]
    assert not torch.allclose(base, found, atol=1e-3), "the head and the states are those of the role"


# Roles that come and go.

OTHER = LoraOptions(rank=2, alpha=6.0, targets=("q_proj", "v_proj"))


def test_the_shape_of_a_role_is_that_of_its_adapter(tiny_llama: Path):
    it = backbone(tiny_llama, moved=False)
    it.add(Role.REWARD, OTHER)
    seven = {f"{name}_proj" for name in "q k v o gate up down".split()}
    assert it.shape(Role.POLICY) == (4, 2.0, seven)
    assert it.shape(Role.REWARD) == (2, 3.0, {"q_proj", "v_proj"})
    with pytest.raises(ValueError, match="no adapter"):
        it.shape(Role.REFERENCE)


@pytest.mark.parametrize("fused", [True, False])
def test_a_role_that_is_removed_is_as_if_it_had_never_been(tiny_llama: Path, fused: bool):
    """Also where its adapter was the only one; and what comes in its place is what a fresh backbone has."""
    chosen = ModelOptions.model_validate({"name": str(tiny_llama), "quantization": "none"})
    speed = SpeedOptions(fused_lora=fused)
    it, fresh = (
        Backbone(load_model(chosen, device="cpu"), shape, seed=0, speed=speed) for shape in (SHAPE, OTHER)
    )
    for one in (it, fresh):
        move(one, 1)
    with torch.no_grad():
        with it.role(Role.BASE):
            plain = it.leaf_logps(BATCH)
        assert not torch.equal(it.leaf_logps(BATCH), plain)
        it.remove(Role.POLICY)
        assert (it.current_role, it.has(Role.POLICY), it.parameters(Role.POLICY)) == (Role.BASE, False, [])
        assert torch.equal(it.leaf_logps(BATCH), plain)
        with pytest.raises(ValueError, match="no adapter"):
            it.remove(Role.POLICY)
        it.add(Role.POLICY, OTHER)
        it.set_adapter_tensors(Role.POLICY, fresh.adapter_tensors(Role.POLICY))
        with it.role(Role.POLICY):
            assert torch.equal(it.leaf_logps(BATCH), fresh.leaf_logps(BATCH))
    assert it.adapter_sha256(Role.POLICY) == fresh.adapter_sha256(Role.POLICY)


def test_removing_a_role_leaves_the_others_and_the_one_that_is_on(tiny_llama: Path):
    """A frozen twin that is removed is the base again, and can be fixed anew."""
    it = backbone(tiny_llama)
    it.add(Role.REWARD, OTHER)
    move(it, 5, Role.REWARD)
    it.fix_reference("adapter")
    with torch.no_grad():
        policy = it.leaf_logps(BATCH)
        with it.role(Role.REWARD):
            scores = it.scores(BATCH)
        it.remove(Role.REFERENCE)
        assert it.current_role is Role.POLICY
        assert torch.equal(it.leaf_logps(BATCH), policy)
        with it.role(Role.REWARD):
            assert torch.equal(it.scores(BATCH), scores)
        with it.role(Role.BASE):
            base = it.leaf_logps(BATCH)
        with it.role(Role.REFERENCE):
            assert torch.equal(it.leaf_logps(BATCH), base)
        it.fix_reference("adapter")
        it.remove(Role.REWARD)
        with it.role(Role.REFERENCE):
            assert torch.equal(it.leaf_logps(BATCH), policy)
