from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lite_align.errors import TrainingStopped
from lite_align.recipe import TrainOptions
from lite_align.train.engine import Engine, FlatParameters, Group, Loss, Window, learning_rate
from tests.waiting import without_waiting

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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
    """Two tensors named like adapter ones; loss = squared error summed over the micro-batch.

    With `own_rate` the second one is a group of its own. What its gradient is added to is `poison`.
    """

    poison = 0.0

    def __init__(self, *, device: str = "cpu", fused: bool = True, own_rate: float | None = None, **changes):
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(3).to(device))
        self.b = nn.Parameter(torch.zeros(1).to(device))
        named = [("lora_A", self.a), ("lora_B", self.b)]
        others = [] if own_rate is None else [Group(named[1:], own_rate)]
        # One process has one accelerator; the engine takes the device from the tensors.
        accelerator = Accelerator(cpu=True)
        self.engine = Engine(
            accelerator,
            named[: len(named) - len(others)],
            options(**changes),
            total_steps=10,
            fused=fused,
            others=others,
        )

    def loss(self, batch: Examples) -> Loss:
        error = (batch.inputs @ self.a + self.b - batch.targets) ** 2
        total = error.sum() + self.b.sum() * self.poison
        return Loss(total, {"loss": error.detach().sum()}, len(batch.keys))


def examples(count: int, device: str = "cpu") -> Examples:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 3, generator=generator).to(device)
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
    """The host learns of it when it reads the metrics, some steps later; none of those was made either."""
    linear = Linear()
    linear.engine.update(split(examples(8), [8]), linear.loss)
    before = linear.engine.parameters.flat.detach().clone()
    poisoned = examples(8)
    poisoned.inputs[3, 0] = float(broken)
    moments = linear.engine.state()["exp_avg"].clone()
    for batch in (poisoned, examples(2), examples(3)):  # the host goes on until it asks
        linear.engine.update(split(batch, [len(batch.keys)]), linear.loss)
    with pytest.raises(TrainingStopped, match="step 2 is not finite") as stopped:
        linear.engine.logged()
    assert torch.equal(linear.engine.state()["exp_avg"], moments)
    assert stopped.value.details == ("examples of that step: 0, 1, 2, 3, 4, 5, 6, 7",)
    assert torch.equal(linear.engine.parameters.flat, before)
    assert linear.engine.step == 1


@pytest.mark.parametrize("fused", [True, False])
def test_the_step_that_broke_is_the_one_named(fused):
    """After good steps that nobody asked about; the plain path knows at once."""
    linear, known = Linear(fused=fused), Linear(fused=fused)
    for linear_of in (linear, known):
        for _ in range(3):
            linear_of.engine.update(split(examples(8), [8]), linear_of.loss)
    poisoned = examples(5)
    poisoned.inputs[1, 0] = float("nan")
    window = split(poisoned, [2, 3])
    if fused:
        linear.engine.update(window, linear.loss)
    with pytest.raises(TrainingStopped, match="step 4 is not finite") as stopped:
        linear.engine.check() if fused else linear.engine.update(window, linear.loss)
    assert stopped.value.details == ("examples of that step: 0, 1, 2, 3, 4",)
    assert linear.engine.step == 3
    assert torch.equal(linear.engine.parameters.flat, known.engine.parameters.flat)


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


# Without waiting for the device.


def test_a_step_does_not_wait_for_the_device(monkeypatch):
    linear = Linear(weight_decay=0.1)
    linear.engine.update(split(examples(8), [8]), linear.loss)  # the first step proves that gradients arrive
    window = split(examples(8), [3, 5])
    with without_waiting(monkeypatch):
        linear.engine.update(window, linear.loss)
    assert linear.engine.logged()["loss"] > 0


def test_waiting_is_noticed(monkeypatch):
    plain = Linear(fused=False)
    plain.engine.update(split(examples(8), [8]), plain.loss)
    for wait in (
        lambda: plain.engine.update(split(examples(8), [8]), plain.loss),  # documented to wait
        lambda: float(plain.a.sum()),
        lambda: bool((plain.a > 0).any()),
        lambda: plain.a.tolist(),
        lambda: plain.a[plain.a > 0],
        lambda: torch.equal(plain.a, plain.b),
    ):
        with (
            pytest.raises(AssertionError, match="waits"),
            without_waiting(monkeypatch),
        ):
            wait()


@pytest.mark.gpu
@needs_gpu
def test_a_step_does_not_wait_for_a_gpu():
    linear = Linear(device="cuda")
    windows = [split(examples(8, "cuda"), sizes) for sizes in ([8], [3, 5], [8])]
    linear.engine.update(windows[0], linear.loss)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for window in windows[1:]:
            linear.engine.update(window, linear.loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = Linear()
    for sizes in ([8], [3, 5], [8]):
        on_cpu.engine.update(split(examples(8), sizes), on_cpu.loss)
    torch.testing.assert_close(linear.a.cpu(), on_cpu.a, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_a_gradient_that_is_not_finite_changes_nothing_on_a_gpu():
    linear = Linear(device="cuda")
    linear.engine.update(split(examples(8, "cuda"), [8]), linear.loss)
    before = {name: tensor.clone() for name, tensor in linear.engine.state().items()}
    weights = linear.engine.parameters.flat.detach().clone()
    poisoned = examples(8, "cuda")
    poisoned.inputs[3, 0] = float("nan")
    for batch in (poisoned, examples(8, "cuda")):
        linear.engine.update(split(batch, [8]), linear.loss)
    with pytest.raises(TrainingStopped, match="step 2 is not finite"):
        linear.engine.check()
    assert torch.equal(linear.engine.parameters.flat, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.engine.state().items())


# The plain path, memory, faults.


def test_the_plain_optimizer_equals_the_fused_one():
    fused, plain = Linear(weight_decay=0.1), Linear(weight_decay=0.1, fused=False)
    for _ in range(5):
        for linear in (fused, plain):
            linear.engine.update(split(examples(8), [3, 5]), linear.loss)
    assert not plain.engine.optimizer.defaults["fused"]
    torch.testing.assert_close(
        plain.engine.parameters.flat, fused.engine.parameters.flat, rtol=1e-6, atol=1e-7
    )
    for name, tensor in plain.engine.state().items():
        torch.testing.assert_close(tensor, fused.engine.state()[name], rtol=1e-6, atol=1e-9)


def test_the_moments_are_there_before_the_first_step():
    linear = Linear()
    before = {name: tensor.data_ptr() for name, tensor in linear.engine.state().items()}
    linear.engine.update(split(examples(8), [8]), linear.loss)
    assert {name: tensor.data_ptr() for name, tensor in linear.engine.state().items()} == before
    assert set(before) == {"exp_avg", "exp_avg_sq", "start"}


def test_a_microbatch_that_fails_leaves_a_step_that_can_be_made_again():
    whole, struck = Linear(), Linear()
    window = split(examples(8), [3, 3, 2])
    whole.engine.update(window, whole.loss)
    calls = 0

    def failing(batch: Examples) -> Loss:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return struck.loss(batch)

    with pytest.raises(torch.OutOfMemoryError):
        struck.engine.update(window, failing)
    assert struck.engine.phase == "forward"
    assert struck.engine.step == 0
    assert struck.engine.sums.weight == 0
    struck.engine.update(window, struck.loss)
    assert torch.equal(struck.engine.parameters.flat, whole.engine.parameters.flat)
    assert struck.engine.logged() == whole.engine.logged()


# Groups with learning rates of their own.


@pytest.mark.parametrize("fused", [True, False])
def test_groups_equal_separate_optimizers_with_their_own_rates_and_clipping(fused: bool):
    """Rates fall as 1, 9/10, 8/10, … of each peak; from the third step on they are halved."""
    ours = Linear(
        own_rate=0.03, fused=fused, schedule="linear", weight_decay=0.1, max_grad_norm=0.5, adam_epsilon=1e-5
    )
    a, b = nn.Parameter(ours.a.detach().clone()), nn.Parameter(ours.b.detach().clone())
    peaks = {a: 0.1, b: 0.03}
    separate = {x: torch.optim.AdamW([x], weight_decay=0.1, eps=1e-5) for x in peaks}
    batch, norms = examples(8), []
    for step in range(5):
        factor = 0.5 if step >= 2 else 1.0
        ours.engine.rate_factor = factor
        assert ours.engine.rate == pytest.approx(factor * 0.1 * (10 - step) / 10)
        ours.engine.update(split(batch, [3, 5]), ours.loss)
        (((batch.inputs @ a + b - batch.targets) ** 2).sum() / 8).backward()
        for tensor, optimizer in separate.items():
            norm = nn.utils.clip_grad_norm_([tensor], 0.5)
            norms.append(float(norm))
            optimizer.param_groups[0]["lr"] = factor * peaks[tensor] * (10 - step) / 10
            optimizer.step()
            optimizer.zero_grad()
    assert min(norms[0::2]) > 0.5, "both are clipped, by different factors"
    assert 0.5 < norms[1] != pytest.approx(norms[0], rel=0.1)
    torch.testing.assert_close(ours.a, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.b, b, rtol=1e-5, atol=1e-6)
    logged = ours.engine.logged()["grad_norm"]
    assert logged == pytest.approx(sum(norms[0::2]) / 5, rel=1e-5), "of the adapter, before clipping"


def test_a_group_alone_is_a_group_of_all():
    """The same rate for both, without clipping: groups change nothing."""
    one, two = Linear(weight_decay=0.1), Linear(weight_decay=0.1, own_rate=0.1)
    for _ in range(4):
        for linear in (one, two):
            linear.engine.update(split(examples(8), [8]), linear.loss)
    assert torch.equal(one.engine.parameters.flat, two.engine.parameters.flat)


def test_a_step_with_groups_does_not_wait_for_the_device(monkeypatch):
    linear = Linear(own_rate=0.01)
    linear.engine.update(split(examples(8), [8]), linear.loss)
    window = split(examples(8), [3, 5])
    with without_waiting(monkeypatch):
        linear.engine.update(window, linear.loss)
        linear.engine.skip()
    assert linear.engine.logged()["loss"] > 0


# Steps without an update.


def run(linear: Linear, plan: str) -> None:
    """`u` is an update, `s` a skipped step, `c` a check."""
    for letter in plan:
        if letter == "u":
            count = 5 + linear.engine.step % 4
            linear.engine.update(split(examples(count), [count]), linear.loss)
        else:
            {"s": linear.engine.skip, "c": linear.engine.check}[letter]()


def snapshot(linear: Linear) -> dict[str, Tensor]:
    tensors = {**linear.engine.state(), "flat": linear.engine.parameters.flat.detach()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_step_moves_the_schedule_and_nothing_else(fused: bool):
    """AdamW counts its own updates: the second is its second, at the rate of the fourth step."""
    linear = Linear(fused=fused, schedule="linear")
    a, b = nn.Parameter(linear.a.detach().clone()), nn.Parameter(linear.b.detach().clone())
    reference = torch.optim.AdamW([a, b], weight_decay=linear.engine.options.weight_decay)
    run(linear, "u")
    before = snapshot(linear)
    run(linear, "ss")
    assert_same(snapshot(linear), before)
    assert (linear.engine.step, linear.engine.skipped, linear.engine.made) == (3, 2, 1)
    assert linear.engine.rate == pytest.approx(0.1 * 7 / 10)
    run(linear, "u")
    for step in (0, 3):
        batch = examples(5 + step % 4)
        reference.param_groups[0]["lr"] = 0.1 * (10 - step) / 10
        (((batch.inputs @ a + b - batch.targets) ** 2).sum() / len(batch.keys)).backward()
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(linear.a, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(linear.b, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("plan", ["ususu", "suusu", "uussuu"])
def test_state_with_skipped_steps_continues_exactly(plan: str, fused: bool):
    whole = Linear(fused=fused, own_rate=0.03, schedule="linear")
    run(whole, plan)
    for cut in range(len(plan) + 1):
        first = Linear(fused=fused, own_rate=0.03, schedule="linear")
        run(first, plan[:cut])
        kept, step, skipped = snapshot(first), first.engine.step, first.engine.skipped
        again = Linear(fused=fused, own_rate=0.03, schedule="linear")
        again.engine.parameters.flat.data.copy_(kept.pop("flat"))
        again.engine.load_state(kept, step, skipped)
        run(again, plan[cut:])
        again.engine.check()
        assert_same(snapshot(again), snapshot(whole))
        assert (again.engine.step, again.engine.skipped) == (len(plan), plan.count("s"))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("plan", ["u", "suu", "uscu", "ucssucsu", "sscu"])
def test_a_broken_gradient_of_the_second_group_names_its_step(plan: str, fused: bool):
    """Whatever was skipped or checked before; later updates and skipped steps do not count."""
    linear = Linear(fused=fused, own_rate=0.03)
    run(linear, plan)
    before, steps = snapshot(linear), len(plan.replace("c", ""))
    linear.poison = float("nan")
    with pytest.raises(TrainingStopped, match=f"step {steps + 1} is not finite") as stopped:  # noqa: PT012
        run(linear, "u")
        linear.poison = 0.0
        run(linear, "ususc")
    keys = ", ".join(map(str, range(5 + steps % 4)))
    assert stopped.value.details == (f"examples of that step: {keys}",)
    assert_same(snapshot(linear), before)
    assert (linear.engine.step, linear.engine.skipped) == (steps, plan.count("s"))


def test_a_broken_gradient_after_a_resume_names_its_step():
    first = Linear(own_rate=0.03)
    run(first, "usu")
    kept = snapshot(first)
    again = Linear(own_rate=0.03)
    again.engine.parameters.flat.data.copy_(kept.pop("flat"))
    again.engine.load_state(kept, 3, 1)
    run(again, "us")
    again.poison = float("inf")
    run(again, "us")
    with pytest.raises(TrainingStopped, match="step 6 is not finite"):
        again.engine.check()


def test_the_first_update_is_proved_however_late_it_comes():
    linear = Linear(own_rate=0.03)
    run(linear, "ss")
    linear.b.requires_grad_(False)
    batch = examples(4)
    with pytest.raises(TrainingStopped) as stopped:
        linear.engine.update(split(batch, [4]), linear.loss)
    assert stopped.value.details == ("lora_B",)


def test_what_was_skipped_is_not_in_the_means():
    linear = Linear()
    run(linear, "s")
    assert linear.engine.logged() == {}
    run(linear, "us")
    logged = linear.engine.logged()
    assert logged.keys() == {"loss", "grad_norm"}
    assert linear.engine.logged() == {}
