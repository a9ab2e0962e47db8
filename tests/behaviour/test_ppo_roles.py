"""A thousand random orders of everything that PPO asks of its roles: nothing is left changed (LA606)."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lite_align.data import forest
from lite_align.data.types import Rendered
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions

ORDERS = 1000
SEQUENCES = [
    [
        Rendered((1, 5, 7, 9, 11), (False, False, False, True, True)),
        Rendered((1, 5, 7, 8), (False,) * 3 + (True,)),
    ],
    [Rendered((1, 6, 10), (False, True, True))],
]
BATCH = forest.batch([forest.grow(key, rows) for key, rows in enumerate(SEQUENCES)])
ANSWERING = (Role.POLICY, Role.REFERENCE, Role.REWARD)


def backbone(folder: Path, tokenizer, hidden: int, quantization: str) -> Backbone:
    """One block, and three roles that differ: POLICY has left REFERENCE, REWARD has a shape of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = ModelOptions.model_validate(
        {"name": str(folder), "quantization": quantization, "dtype": "float32"}
    )
    it = Backbone(load_model(options, device="cpu"), LoraOptions(rank=2, alpha=4.0), seed=0)
    move(it, Role.POLICY, 1)
    it.fix_reference("adapter")
    it.add(Role.REWARD, LoraOptions(rank=1, alpha=2.0, targets=("q_proj", "up_proj")))
    move(it, Role.POLICY, 2)
    move(it, Role.REWARD, 3)
    return it


def move(it: Backbone, role: Role, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in it.parameters(role):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


# What PPO asks for. Each call gives numbers that must be the same every time.


def train(it: Backbone) -> list[Tensor]:
    """Forward and backward of POLICY, with another role in between."""
    with it.role(Role.POLICY):
        loss = it.leaf_logps(BATCH).sum()
        with it.role(Role.REFERENCE), torch.no_grad():
            it.hidden(BATCH)
        loss.backward()
    gradients = []
    for _, parameter in it.parameters(Role.POLICY):
        assert parameter.grad is not None
        gradients.append(parameter.grad)
        parameter.grad = None
    return [loss.detach(), *gradients]


def as_role(role: Role, call: Callable[[Backbone], Tensor]) -> Callable[[Backbone], list[Tensor]]:
    @torch.no_grad()
    def under(it: Backbone) -> list[Tensor]:
        with it.role(role):
            return [call(it)]

    return under


def hidden(it: Backbone) -> Tensor:
    return it.hidden(BATCH)


def token_scores(it: Backbone) -> Tensor:
    return it.token_scores(BATCH)[0]


def scores(it: Backbone) -> Tensor:
    return it.scores(BATCH)


def sampled(it: Backbone) -> Tensor:
    answers = it.sample([(1, 5, 7), (1, 6)], samples=2, stop_ids=frozenset(), max_new_tokens=2, seed=3)
    return torch.tensor([[*one.ids, *one.logps] for both in answers for one in both])


def greedy(it: Backbone) -> Tensor:
    return torch.tensor(it.generate([(1, 5, 7)], stop_ids=frozenset(), max_new_tokens=2))


CALLS: dict[str, Callable[[Backbone], list[Tensor]]] = {
    "train": train,
    "scores of reward": as_role(Role.REWARD, scores),
    **{f"hidden of {role}": as_role(role, hidden) for role in ANSWERING},
    **{f"log-probs of {role}": as_role(role, token_scores) for role in (Role.POLICY, Role.REFERENCE)},
    "answers of policy": as_role(Role.POLICY, sampled),
    "greedy answers of policy": as_role(Role.POLICY, greedy),
}


def state(it: Backbone) -> tuple[object, ...]:
    """Flags and role, and a hash of every weight of the base, of the adapters and of the head."""
    parameters = [*it.model.parameters(), *(head for _, head in it.parameters(Role.REWARD)[-1:])]
    weights = hashlib.sha256()
    for tensor in (*parameters, *it.model.buffers()):
        weights.update(tensor.detach().numpy().tobytes())
    return (
        [module.training for module in it.model.modules()],
        [(parameter.requires_grad, parameter.grad is None) for parameter in parameters],
        it.current_role,
        torch.is_grad_enabled(),
        weights.digest(),
    )


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def run(it: Backbone, orders: int) -> None:
    """Random orders of one to three calls, each beginning under a random role, one after the other."""
    source = random.Random(0)
    first = {name: call(it) for name, call in CALLS.items()}
    outputs = [found[0].numpy().tobytes() for name, found in first.items() if "answers" not in name]
    assert len(set(outputs)) == len(outputs)  # each role has outputs of its own
    before = {}
    for role in Role:
        with it.role(role):
            before[role] = state(it)
    hashes = it.base_sha256(), *(it.adapter_sha256(role) for role in ANSWERING)
    for _ in range(orders):
        chosen = source.choices(list(CALLS), k=source.randint(1, 3))
        with it.role(role := source.choice(list(Role))):
            for name in chosen:
                assert same(CALLS[name](it), first[name]), chosen
            assert state(it) == before[role], chosen
    assert (it.base_sha256(), *(it.adapter_sha256(role) for role in ANSWERING)) == hashes


@pytest.mark.slow
def test_a_thousand_orders_of_role_calls_leave_nothing_changed(tmp_path: Path, tokenizer):
    run(backbone(tmp_path, tokenizer, 16, "none"), ORDERS)


def test_nor_do_they_in_4_bits(tmp_path: Path, tokenizer):
    """Where generation in eval mode could repack the base for good."""
    run(backbone(tmp_path, tokenizer, 64, "nf4"), ORDERS // 50)


# What must be noticed.


def eval_mode(it: Backbone) -> None:
    it.model.eval()


def thaw(it: Backbone) -> None:
    it.parameters(Role.REFERENCE)[0][1].requires_grad_(True)


def leave_role(it: Backbone) -> None:
    it._switch(Role.REWARD)


def train_reference(it: Backbone) -> None:
    it.parameters(Role.REFERENCE)[0][1].data.add_(1e-6)


def move_base(it: Backbone) -> None:
    it.model.get_input_embeddings().weight.data[5, 3] += 1e-6


def leave_gradient(it: Backbone) -> None:
    it.leaf_logps(BATCH).sum().backward()


@pytest.mark.parametrize(
    "change",
    [eval_mode, thaw, leave_role, train_reference, move_base, leave_gradient],
    ids=lambda f: f.__name__,
)
def test_a_change_is_noticed(tmp_path: Path, tokenizer, change):
    it = backbone(tmp_path, tokenizer, 16, "none")
    before = state(it)
    assert state(it) == before
    change(it)
    assert state(it) != before
