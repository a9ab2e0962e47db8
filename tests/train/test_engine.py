from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lite_align.errors import TrainingStopped
from lite_align.recipe import TrainOptions
from lite_align.train.engine import Engine, FlatParameters, Loss, Window, learning_rate


@dataclass(frozen=True)
class Examples:
    """A micro-batch of scalars for a linear model."""

    inputs: Tensor
    targets: Tensor
    keys: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.keys)


def options(**changes) -> TrainOptions:
    values = {"learning_rate": 0.1, "warmup": 0.0, "schedule": "constant", "max_grad_norm": 1e9, **changes}
    return TrainOptions(**values)


class Linear:
    """Two tensors named like adapter ones; loss = squared error summed over the micro-batch."""

    def __init__(self, **changes):
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(3))
        self.b = nn.Parameter(torch.zeros(1))
        named = [("lora_A", self.a), ("lora_B", self.b)]
        self.engine = Engine(Accelerator(cpu=True), named, options(**changes), total_steps=10)

    def loss(self, batch: Examples) -> Loss:
        error = (batch.inputs @ self.a + self.b - batch.targets) ** 2
        return Loss(error.sum(), {"loss": error.detach().sum()}, len(batch.keys))


def examples(count: int) -> Examples:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 3, generator=generator)
    return Examples(inputs, inputs.sum(1), tuple(range(count)))


def split(batch: Examples, sizes: list[int]) -> Window[Examples]:
    pieces, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        pieces.append(Examples(batch.inputs[part], batch.targets[part], batch.keys[part]))
        start += size
    return Window(pieces, float(len(batch.keys)))


@pytest.mark.parametrize("sizes", [[8], [4, 4], [1] * 8, [5, 2, 1], [2, 6]])
def test_how_examples_fall_into_microbatches_does_not_change_the_update(sizes):
    whole, parts = Linear(), Linear()
    for _ in range(3):
        whole.engine.update(split(examples(8), [8]), whole.loss)
        parts.engine.update(split(examples(8), sizes), parts.loss)
    torch.testing.assert_close(parts.a, whole.a, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(parts.b, whole.b, rtol=1e-6, atol=1e-7)
    assert parts.engine.logged()["loss"] == pytest.approx(whole.engine.logged()["loss"], rel=1e-6)


def test_flat_adamw_equals_adamw_on_separate_tensors():
    ours = Linear(weight_decay=0.1)
    a, b = nn.Parameter(ours.a.detach().clone()), nn.Parameter(ours.b.detach().clone())
    reference = torch.optim.AdamW([a, b], lr=0.1, weight_decay=0.1)
    batch = examples(8)
    for _ in range(5):
        ours.engine.update(split(batch, [3, 5]), ours.loss)
        reference.zero_grad()
        (((batch.inputs @ a + b - batch.targets) ** 2).sum() / 8).backward()
        reference.step()
    torch.testing.assert_close(ours.a, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.b, b, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_clipped_to_the_global_norm():
    clipped, free = Linear(max_grad_norm=0.5), Linear()
    for linear in (clipped, free):
        linear.engine.update(split(examples(8), [8]), linear.loss)
    assert free.engine.parameters.gradient.norm() > 0.5
    torch.testing.assert_close(
        clipped.engine.parameters.gradient.norm(), torch.tensor(0.5), rtol=1e-4, atol=0
    )
    assert clipped.engine.logged()["grad_norm"] == pytest.approx(free.engine.logged()["grad_norm"])


@pytest.mark.parametrize("broken", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(broken):
    linear = Linear()
    linear.engine.update(split(examples(8), [8]), linear.loss)
    before = linear.engine.parameters.flat.detach().clone()
    poisoned = examples(8)
    poisoned.inputs[3, 0] = float(broken)
    with pytest.raises(TrainingStopped, match="step 2 is not finite") as stopped:
        linear.engine.update(split(poisoned, [8]), linear.loss)
    assert "3" in stopped.value.details[0]
    assert torch.equal(linear.engine.parameters.flat, before)
    assert linear.engine.step == 1


def test_an_adapter_tensor_without_a_gradient_is_named_at_the_first_step():
    linear = Linear()

    def loss(batch: Examples) -> Loss:
        error = (batch.inputs @ linear.a + linear.b.detach() - batch.targets) ** 2
        return Loss(error.sum(), {}, len(batch.keys))

    with pytest.raises(TrainingStopped) as stopped:
        linear.engine.update(split(examples(8), [8]), loss)
    assert stopped.value.details == ("lora_B",)


def test_state_continues_exactly():
    through, first = Linear(), Linear()
    windows = [split(examples(n), [n]) for n in (8, 5, 6, 8)]
    for window in windows:
        through.engine.update(window, through.loss)
    for window in windows[:2]:
        first.engine.update(window, first.loss)
    resumed = Linear()
    state = {name: tensor.clone() for name, tensor in first.engine.state().items()}
    with torch.no_grad():
        resumed.a.copy_(first.a)
        resumed.b.copy_(first.b)
    resumed.engine.load_state(state, step=2)
    for window in windows[2:]:
        resumed.engine.update(window, resumed.loss)
    assert torch.equal(resumed.engine.parameters.flat, through.engine.parameters.flat)
    assert resumed.engine.parameters.moved() == through.engine.parameters.moved() == 1.0


def test_moved_is_the_share_of_elements_and_still_names_the_others():
    tensors = [("lora_A", nn.Parameter(torch.ones(3))), ("lora_B", nn.Parameter(torch.ones(1)))]
    flat = FlatParameters(tensors)
    assert flat.moved() == 0.0
    with torch.no_grad():
        tensors[0][1][1] = 2.0  # the parameter is a view into the flat buffer
    assert flat.flat[1] == 2.0
    assert flat.moved() == 0.25
    assert flat.still(gradient=False) == ["lora_B"]


def test_learning_rate_by_hand():
    # 10 steps, warmup 0.2: 2 steps up, 8 down. Cosine: half of the peak in the middle of the 8.
    cosine = options(warmup=0.2, schedule="cosine")
    assert [learning_rate(s, 10, cosine, 1.0) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate(6, 10, cosine, 1.0) == pytest.approx(0.5)
    assert learning_rate(10, 10, cosine, 1.0) == pytest.approx(0.0)
    linear = options(warmup=0.2, schedule="linear")
    assert learning_rate(4, 10, linear, 1.0) == pytest.approx(0.75)
    assert learning_rate(9, 10, options(warmup=0.2), 3.0) == 3.0
