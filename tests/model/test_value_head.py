"""The value head: its kinds, its start, and which way its gradients go."""

import pytest
import torch
from torch import Tensor

from lite_align.model.value_head import UNITS, Kind, ValueHead

CPU = torch.device("cpu")
SIZE = 32

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def head(kind: Kind, seed: int = 0, *, size: int = SIZE, device: torch.device = CPU) -> ValueHead:
    return ValueHead(kind, size, seed=seed, device=device)


def states(tokens: int = 40, size: int = SIZE) -> Tensor:
    """Of the size that a final norm leaves: elements about 1."""
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(1))


def tensors(of: ValueHead) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.named_parameters()}


def test_a_probe_has_a_layer_of_units_and_a_linear_head_none():
    shapes = {kind: {name: tuple(p.shape) for name, p in head(kind).named_parameters()} for kind in Kind}
    assert shapes[Kind.LINEAR] == {"weight": (SIZE,), "bias": (1,)}
    assert shapes[Kind.PROBE] == {
        "hidden_weight": (UNITS, SIZE),
        "hidden_bias": (UNITS,),
        "weight": (UNITS,),
        "bias": (1,),
    }


@torch.no_grad()
def test_values_by_hand():
    """A linear head: 3 · 1 − 2 · 2 + 5 = 4. A probe with one unit awake: 2 tanh(artanh 1/2) − 1 = 0."""
    linear = head(Kind.LINEAR, size=2)
    linear.weight.copy_(torch.tensor([3.0, -2.0]))
    linear.bias.fill_(5.0)
    assert linear(torch.tensor([[1.0, 2.0], [0.0, 0.0]])).tolist() == [4.0, 5.0]
    probe = head(Kind.PROBE, size=2)
    for parameter in probe.parameters():
        parameter.zero_()
    assert probe.hidden_weight is not None
    probe.hidden_weight[7, 1] = 1.0
    probe.weight[7], probe.bias[0] = 2.0, -1.0
    half = float(torch.tensor(0.5).atanh())
    assert probe(torch.tensor([[9.0, half], [9.0, 0.0]])).tolist() == pytest.approx([0.0, -1.0], abs=1e-6)


@pytest.mark.parametrize("kind", Kind)
def test_the_start_depends_on_the_seed_alone(kind: Kind):
    first = tensors(head(kind, 3))
    torch.manual_seed(99)  # the numbers of the process have no part in it, and are not drawn from
    before = torch.get_rng_state()
    again, other = tensors(head(kind, 3)), tensors(head(kind, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for name in first if not torch.equal(again[name], first[name])] == []
    assert not torch.equal(other["weight"], first["weight"])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", Kind)
def test_the_start_is_the_same_on_a_gpu(kind: Kind):
    there = tensors(head(kind, 3, device=torch.device("cuda")))
    assert all(torch.equal(there[name].cpu(), value) for name, value in tensors(head(kind, 3)).items())


@pytest.mark.parametrize("size", [64, 2048])
@pytest.mark.parametrize("kind", Kind)
def test_values_start_near_0_whatever_the_size(kind: Kind, size: int):
    """Yet they are not all the same: a spread of about a hundredth."""
    values = head(kind, size=size)(states(200, size)).detach()
    assert float(values.abs().max()) < 0.1
    assert 1e-3 < float(values.std()) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", Kind)
def test_every_tensor_learns_at_once(kind: Kind, dtype: torch.dtype):
    """States that need no gradient get none; the values are fp32 of states of any precision."""
    one, given = head(kind), states().to(dtype)
    values = one(given)
    assert (values.dtype, values.shape) == (torch.float32, (40,))
    (values - 1).square().sum().backward()
    assert all(p.dtype == torch.float32 for p in one.parameters())
    assert [name for name, p in one.named_parameters() if p.grad is None or not p.grad.any()] == []
    if kind is Kind.PROBE:
        assert one.hidden_weight is not None
        assert one.hidden_weight.grad is not None
        assert bool(one.hidden_weight.grad.any(1).all()), "every unit"
    assert given.grad is None


@pytest.mark.parametrize("kind", Kind)
def test_states_that_need_a_gradient_get_it(kind: Kind):
    """The policy learns through a linear head: of a value the gradient is the weight itself."""
    one, given = head(kind), states(5).requires_grad_()
    one(given)[2].backward()
    assert given.grad is not None
    assert given.grad.any(1).tolist() == [False, False, True, False, False]
    if kind is Kind.LINEAR:
        assert torch.equal(given.grad[2], one.weight)


@pytest.mark.parametrize("kind", Kind)
def test_gradients_are_those_of_finite_differences(kind: Kind, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    one, given = head(kind, size=4).double(), states(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(one, (given,))


@pytest.mark.parametrize("kind", Kind)
def test_no_tokens_have_no_values(kind: Kind):
    assert head(kind)(states(0)).shape == (0,)
