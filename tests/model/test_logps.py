"""Token log-probs: against fp64, against the models' own logits, and counted in matrix products."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
)

from lite_align.model import logps
from lite_align.model.logps import FrozenHead, OwnHead

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(config: PreTrainedConfig):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return model.requires_grad_(False)


def exact_logits(hidden: Tensor, head: FrozenHead) -> Tensor:
    """The definition, in fp64, over the whole vocabulary at once."""
    bias = None if head.bias is None else head.bias.double()
    logits = head.scale * functional.linear(hidden.double(), head.weight.double(), bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def exact(hidden: Tensor, head: FrozenHead, target: Tensor) -> Tensor:
    return exact_logits(hidden, head).log_softmax(-1).gather(1, target[:, None])[:, 0]


def problem(dtype: torch.dtype, *, scale: float, softcap: float | None, bias: bool, tokens: int = 50):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    head = FrozenHead(random(300, 24), random(300) if bias else None, scale, softcap)
    target = torch.randint(0, 300, (tokens,), generator=generator)
    return random(tokens, 24).requires_grad_(), head, target


def gradient(values: Tensor, hidden: Tensor) -> Tensor:
    """Gradient of a weighted sum, as a DPO loss would ask for it."""
    weights = torch.linspace(-1, 1, len(values), dtype=values.dtype)
    (result,) = torch.autograd.grad((weights * values).sum(), hidden)
    return result


def test_two_tokens_by_hand():
    """Logits (0, ln 3) give probabilities 1/4 and 3/4."""
    head = FrozenHead(torch.tensor([[0.0], [1.0]]))
    hidden = torch.tensor([[torch.log(torch.tensor(3.0))]] * 2)
    values = logps.token_logps(hidden, head, torch.tensor([0, 1]))
    assert values.tolist() == pytest.approx([-1.3862944, -0.2876821], rel=1e-6)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_token_is_the_best_where_no_other_is_likelier(softcap: float | None):
    hidden, head, target = problem(torch.float32, scale=0.5, softcap=softcap, bias=True)
    likeliest = (functional.linear(hidden, head.weight, head.bias)).argmax(1)
    target = torch.where(torch.arange(50) % 3 == 0, likeliest, target)
    values, best = logps.token_scores(hidden, head, target, chunk=16)
    assert best.tolist() == (target == likeliest).tolist()
    assert 17 <= int(best.sum()) < 30
    assert not best.requires_grad
    assert torch.equal(values, logps.token_logps(hidden, head, target, chunk=16))
    # Of equal logits each is the best.
    same = FrozenHead(torch.ones(3, 1))
    assert logps.token_scores(torch.ones(1, 1), same, torch.tensor([1]))[1].tolist() == [True]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 30.0), (0.5, 5.0)])
def test_values_and_gradients_equal_fp64(
    dtype: torch.dtype, tolerance: float, bias: bool, scale: float, softcap: float | None
):
    hidden, head, target = problem(dtype, scale=scale, softcap=softcap, bias=bias)
    expected = exact(hidden, head, target)
    values = logps.token_logps(hidden, head, target, chunk=16)
    assert values.dtype == torch.float32
    # bf16 numbers are multiplied with sums in fp32, so values are exact in both cases.
    assert (values - expected).abs().max() <= 1e-5 * expected.abs().max()
    ours, theirs = gradient(values, hidden), gradient(expected, hidden)
    assert ours.dtype == dtype
    assert (ours.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()


def test_the_setting_for_bf16_operands_is_for_one_product_only():
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    x = torch.tensor([[1 + 2**-12]])  # rounds to 1 in bf16

    def a_product_fails():
        with logps._rounding_nothing():
            assert matmul.fp32_precision == "bf16"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        a_product_fails()
    assert matmul.fp32_precision == before
    hidden, head, target = problem(torch.bfloat16, scale=1.0, softcap=None, bias=False)
    logps.token_logps(hidden, head, target)
    assert (x @ torch.ones(1, 1)).item() == 1 + 2**-12


@settings(deadline=None, max_examples=25)
@given(chunk=st.integers(1, 60), tokens=st.integers(0, 50))
def test_chunks_do_not_matter(chunk: int, tokens: int):
    hidden, head, target = problem(torch.float32, scale=1.0, softcap=None, bias=False, tokens=tokens)
    values = logps.token_logps(hidden, head, target, chunk=chunk)
    whole = logps.token_logps(hidden, head, target, chunk=50)
    assert torch.allclose(values, whole, atol=1e-5)
    assert torch.allclose(gradient(values, hidden), gradient(whole, hidden), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(size=st.sampled_from([1e-3, 1.0, 1e2, 1e4]), seed=st.integers(0, 99))
def test_extreme_logits_stay_finite(size: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    hidden = (size * torch.randn(8, 16, generator=generator)).requires_grad_()
    head = FrozenHead(torch.randn(64, 16, generator=generator))
    target = torch.randint(0, 64, (8,), generator=generator)
    values = logps.token_logps(hidden, head, target)
    assert torch.isfinite(values).all()
    assert (values <= 1e-6).all()
    assert torch.isfinite(gradient(values, hidden)).all()


class CountProducts(TorchDispatchMode):
    """Counts matrix products in which the vocabulary takes part."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.count = 0

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        shapes = [size for x in arguments if isinstance(x, Tensor) for size in x.shape]
        self.count += name in ("mm", "addmm", "bmm") and self.vocabulary in shapes
        return function(*arguments, **(keywords or {}))


def products(head, tokens: int, *, needs_gradient: bool) -> int:
    hidden = torch.randn(tokens, 24, requires_grad=needs_gradient)
    with CountProducts(300) as counter:
        values = logps.token_logps(hidden, head, torch.zeros(tokens, dtype=torch.int64), chunk=tokens)
        if needs_gradient:
            values.sum().backward()
    return counter.count


def test_a_frozen_head_needs_two_products_and_one_without_gradients():
    head = FrozenHead(torch.randn(300, 24))
    assert products(head, 10, needs_gradient=True) == 2
    assert products(head, 10, needs_gradient=False) == 1


def test_no_gradient_is_prepared_under_no_grad():
    hidden, head, target = problem(torch.float32, scale=1.0, softcap=None, bias=False)
    with torch.no_grad(), CountProducts(300) as counter:
        assert not logps.token_logps(hidden, head, target).requires_grad
    assert counter.count == 1


def test_what_is_saved_is_one_row_for_each_token():
    hidden, head, target = problem(torch.bfloat16, scale=1.0, softcap=5.0, bias=False)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps.token_logps(hidden, head, target)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in saved] == [((50, 24), torch.bfloat16)]


CONFIGS = [
    LlamaConfig(**SMALL),
    Olmo2Config(**SMALL),
    Gemma2Config(**SMALL, head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=3.0),
    CohereConfig(**SMALL, logit_scale=0.25),
    GraniteConfig(**SMALL, logits_scaling=4.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_fast_path_is_chosen_and_equals_the_models_own_logits(config: PreTrainedConfig):
    model = model_of(config)
    head = logps.choose_head(model)
    assert isinstance(head, FrozenHead)
    ids = torch.randint(0, 96, (1, 20))
    expected = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    hidden = model.base_model(input_ids=ids).last_hidden_state[0, :-1]
    assert torch.allclose(logps.token_logps(hidden, head, ids[0, 1:]), expected, atol=1e-5)


def test_factors_of_the_logits():
    assert logps.transform(LlamaConfig(**SMALL)) == (1.0, None)
    assert logps.transform(GraniteConfig(**SMALL, logits_scaling=4.0)) == (0.25, None)
    assert logps.transform(CohereConfig(**SMALL, logit_scale=0.25)) == (0.25, None)
    assert logps.transform(Gemma2Config(**SMALL, final_logit_softcapping=3.0)) == (1.0, 3.0)


@pytest.mark.parametrize("wrong", [(0.5, None), (1.0, 30.0), (1.0, 500.0)])
def test_a_wrong_factor_or_cap_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: tuple[float, float | None]):
    """A cap of 30 moves logits near 0 by nothing: it shows because the check scales hidden states up."""
    monkeypatch.setattr(logps, "transform", lambda _: wrong)
    assert isinstance(logps.choose_head(model_of(LlamaConfig(**SMALL))), OwnHead)


def test_the_models_own_head_gives_the_same_values_and_gradients():
    model = model_of(CONFIGS[2])
    fast = logps.choose_head(model)
    ids = torch.randint(0, 96, (30,))
    results = []
    for head in (fast, OwnHead(model)):
        hidden = torch.randn(30, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        values = logps.token_logps(hidden, head, ids, chunk=7)
        results.append((values, gradient(values, hidden)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)
    assert [len(values) for values in logps.token_scores(hidden[:0], OwnHead(model), ids[:0])] == [0, 0]
    best = logps.token_scores(hidden, OwnHead(model), ids, chunk=7)[1]
    assert best.tolist() == (logps.own_logits(model, hidden).argmax(1) == ids).tolist()
    assert type(model.model).__name__ == "Gemma2Model"


def test_a_trained_head_gets_its_gradient():
    model = model_of(LlamaConfig(**SMALL))
    weight = model.lm_head.weight.requires_grad_()
    head = logps.choose_head(model)
    assert isinstance(head, OwnHead)
    hidden = torch.randn(9, 32)
    target = torch.randint(0, 96, (9,))
    logps.token_logps(hidden, head, target, chunk=4).sum().backward()
    probabilities = (hidden @ weight.detach().t()).softmax(-1)
    expected = (functional.one_hot(target, 96) - probabilities).t() @ hidden
    assert torch.allclose(weight.grad, expected, atol=1e-4)


def test_a_pass_does_not_convert_the_weight_again():
    """As large as the model's embedding: on 33 M weights a conversion took a tenth of a step."""

    class Converted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default:
                sizes.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    sizes: list[int] = []
    weight = torch.randn(512, 16).bfloat16()
    head = FrozenHead(weight, exact=weight.float())
    hidden = torch.randn(5, 16).bfloat16().requires_grad_()
    with Converted():
        logps.token_scores(hidden, head, torch.arange(5))
    assert hidden.numel() in sizes
    assert weight.numel() not in sizes


# At a temperature, and statistics.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 30.0), (0.5, 5.0)])
def test_a_temperature_divides_the_logits_after_everything(
    temperature: float, bias: bool, scale: float, softcap: float | None
):
    hidden, head, target = problem(torch.float32, scale=scale, softcap=softcap, bias=bias)
    logits = exact_logits(hidden, head) / temperature
    expected = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    values = logps.token_logps(hidden, logps.at_temperature(head, temperature), target, chunk=16)
    assert (values - expected).abs().max() <= 1e-5 * expected.abs().max()
    ours, theirs = gradient(values, hidden), gradient(expected, hidden)
    assert (ours.double() - theirs.double()).norm() <= 1e-5 * theirs.double().norm()


def test_temperatures_multiply_and_1_changes_nothing():
    hidden, head, target = problem(torch.float32, scale=0.5, softcap=5.0, bias=True)
    own = OwnHead(model_of(CONFIGS[2]))
    for one in (head, own):
        assert logps.at_temperature(one, 1.0) == one
        assert logps.at_temperature(logps.at_temperature(one, 0.5), 4.0) == logps.at_temperature(one, 2.0)
    weight, bias = head.weight.clone(), head.bias.clone()
    logps.token_statistics(hidden, logps.at_temperature(head, 0.5), target)
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[3]], ids=lambda config: config.model_type)
def test_the_models_own_head_at_a_temperature(config: PreTrainedConfig):
    """With a softcap and with a factor; values, gradients and entropies of both paths."""
    model = model_of(config)
    ids = torch.randint(0, 96, (30,), generator=torch.Generator().manual_seed(0))
    for head in (logps.choose_head(model), OwnHead(model)):
        hidden = torch.randn(30, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        expected = (logps.own_logits(model, hidden).double() / 0.6).log_softmax(-1)
        chosen = expected.gather(1, ids[:, None])[:, 0]
        warm = logps.at_temperature(head, 0.6)
        values = logps.token_logps(hidden, warm, ids, chunk=7)
        assert torch.allclose(values.double(), chosen, atol=1e-5)
        assert torch.allclose(gradient(values, hidden), gradient(chosen, hidden), atol=1e-5)
        found, entropies = logps.token_statistics(hidden, warm, ids)
        assert torch.allclose(found.double(), chosen, atol=1e-5)
        assert torch.allclose(entropies.double(), -(expected.exp() * expected).sum(1), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 65, 256, 257])
def test_statistics_have_exactly_the_log_probs_of_training(
    monkeypatch: pytest.MonkeyPatch, tokens: int, own: bool, dtype: torch.dtype
):
    """Also where a pass ends: after 64 tokens here, after 256 with the model's own head."""
    monkeypatch.setattr(logps, "LOGITS_AT_ONCE", {"cpu": 64 * 96})
    model = model_of(CONFIGS[2]).to(dtype)
    head = logps.at_temperature(OwnHead(model) if own else logps.choose_head(model), 0.7)
    assert isinstance(head, OwnHead) is own
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(tokens, 32, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(0, 96, (tokens,), generator=generator)
    found, entropies = logps.token_statistics(hidden, head, target)
    assert torch.equal(found, logps.token_scores(hidden, head, target)[0])
    assert found.dtype == entropies.dtype == torch.float32
    assert found.shape == entropies.shape == (tokens,)
    assert not found.requires_grad
    assert not entropies.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scale", "softcap", "bias"), [(1.0, None, True), (0.5, 5.0, False), (3.0, None, True)]
)
def test_entropies_equal_fp64(dtype: torch.dtype, scale: float, softcap: float | None, bias: bool):
    hidden, head, target = problem(dtype, scale=scale, softcap=softcap, bias=bias)
    expected = exact_logits(hidden, head).log_softmax(-1)
    _, entropies = logps.token_statistics(hidden, head, target)
    assert torch.allclose(entropies.double(), -(expected.exp() * expected).sum(1), rtol=1e-5, atol=1e-5)


def test_entropies_at_their_limits():
    """Equal logits have ln V, a certain token 0, and two equal ones ln 2; far below them the others are nothing."""
    far = torch.full((96, 3), -1e4)
    far[5, 0] = far[5, 1] = far[9, 1] = 0.0
    far[:, 2] = 7.0
    _, entropies = logps.token_statistics(torch.eye(3), FrozenHead(far), torch.tensor([5, 5, 5]))
    assert entropies.tolist() == pytest.approx([0.0, 0.6931472, 4.5643482], abs=1e-6)
    assert entropies[0] == 0.0


def test_statistics_need_one_product():
    hidden, head, target = problem(torch.float32, scale=1.0, softcap=None, bias=False)
    with CountProducts(300) as counter:
        logps.token_statistics(hidden, head, target)
    assert counter.count == 1
