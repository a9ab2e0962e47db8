"""Losses against hand arithmetic, papers' minima, and properties that hold for the whole table."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.losses.catalogue import find, options_for
from lite_align.losses.preference import LOSSES, PairLogps, metrics, total

# One pair for all oracles: log π(w) −12, log ref(w) −14, 4 tokens: r_w = 2, mean −3
#                           log π(l) −20, log ref(l) −17, 5 tokens: r_l = −3, mean −4;  gap 5, β gap 0.5
LOG_S_HALF = 0.4740769842  # −log σ(0.5) = log(1 + e^−0.5) = log 1.6065306597
LOG_S_MINUS_HALF = 0.9740769842  # −log σ(−x) = x − log σ(x)
S_HALF = 0.6224593312  # σ(0.5) = 1/1.6065306597

ORACLES: list[tuple[str, dict[str, float], float]] = [
    ("sigmoid", {"beta": 0.1}, LOG_S_HALF),
    # 0.9·0.4740770 + 0.1·0.9740770
    ("sigmoid", {"beta": 0.1, "label_smoothing": 0.1}, 0.5240769842),
    # 2/4 − (−3/5) = 1.1; 1/(2·0.1) = 5; (1.1 − 5)² = 3.9²
    ("ipo", {"beta": 0.1}, 15.21),
    # 1 − 0.5, and 0.4 − 0.5 < 0
    ("hinge", {"beta": 0.1, "margin": 1.0}, 0.5),
    ("hinge", {"beta": 0.1, "margin": 0.4}, 0.0),
    # (0.9·0.4740770 − 0.1·0.9740770)/0.8 = (0.4266693 − 0.0974077)/0.8
    ("robust", {"beta": 0.1, "flip_rate": 0.1}, 0.4115769842),
    # 2·(−3) − 2·(−4) − 1 = 1; log(1 + e^−1) = log 1.3678794
    ("simpo", {"beta": 2.0, "gamma": 1.0}, 0.3132616875),
    # odds(w) = e^−3/(1 − e^−3) = 0.0523957, odds(l) = 0.0186574, ratio 2.8083123;
    # 3 + 0.1·log(1 + 1/2.8083123) = 3 + 0.1·0.3046035
    ("orpo", {"beta": 0.1}, 3.0304603),
    # r_w = 2 is above the reference: no penalty, DPO
    ("dpop", {"beta": 0.1, "penalty": 5.0}, LOG_S_HALF),
    # targets ±5: (2 − 5)² + (−3 + 5)² = 9 + 4
    ("sppo", {"beta": 0.1}, 13.0),
    # 1 − σ(0.2) + σ(−0.3) = 1 − 0.5498340 + 0.4255575
    ("apo_zero", {"beta": 0.1}, 0.8757234859),
    # σ(0.2) + 1 − σ(0.5) = 0.5498340 + 0.3775407
    ("apo_down", {"beta": 0.1}, 0.9273746661),
    # 0.6224593·(−0.4740770 + 0.1053605) + 0.3775407·(−0.9740770 + 2.3025851) = −0.2295110 + 0.5015658
    ("exo", {"beta": 0.1, "epsilon": 0.1}, 0.2720547854),
    # −log σ(0.2) − ½ log σ(−0.2) − ½ log σ(0.3) = 0.5981389 + 0.3990694 + 0.2771776
    ("nca", {"beta": 0.1}, 1.2743859),
    # −log σ(0.2) − log σ(0.3) = 0.5981389 + 0.5543552
    ("bco_pair", {"beta": 0.1}, 1.1524941),
    # −log σ(0.2 − 0.1) − log σ(0.3 + 0.1) = 0.6443967 + 0.5130153
    ("bco_pair", {"beta": 0.1, "delta": 0.1}, 1.1574119),
    # m = σ(0.5/0.5) = 0.7310586; 0.2689414·0.4740770 + 0.7310586·e^−0.5 = 0.1274989 + 0.4434095
    ("discopop", {"beta": 0.1, "tau": 0.5}, 0.5709084),
]


def pair(chosen: float = -12.0, rejected: float = -20.0) -> PairLogps:
    values = (chosen, rejected, 4.0, 5.0, -14.0, -17.0)
    return PairLogps(*(torch.tensor([v], dtype=torch.float64) for v in values))


def gaps(values: torch.Tensor) -> PairLogps:
    """Pairs whose chosen answers move and whose rejected ones stay at the reference; answers of one token."""
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    return PairLogps(values - 1000, zero - 1000, one, one, zero - 1000, zero - 1000)


@pytest.mark.parametrize(("name", "options", "expected"), ORACLES)
def test_value_is_what_hand_arithmetic_gives(name: str, options: dict[str, float], expected: float) -> None:
    value = find(name).function(pair(), **options_for(name, options)).item()
    assert value == pytest.approx(expected, abs=2e-7)


def test_dpop_charges_for_a_chosen_answer_below_the_reference() -> None:
    # r_w = −1, gap −1 + 3 = 2, penalty 5·1: −log σ(0.1·(2 − 5)) = −log σ(−0.3) = 0.8543552
    options = options_for("dpop", {"beta": 0.1, "penalty": 5.0})
    assert find("dpop").function(pair(chosen=-15), **options).item() == pytest.approx(0.8543552445, abs=1e-7)


def test_every_loss_has_an_oracle() -> None:
    assert {name for name, _, _ in ORACLES} == set(LOSSES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("ipo", 25.0),  # (1/(2·0.1))²
        ("hinge", 1.0),
        ("robust", math.log(2)),
        ("dpop", math.log(2)),
        ("sppo", 50.0),  # 2·5²
        ("apo_zero", 1.0),  # 1 − ½ + ½
        ("apo_down", 1.0),
        ("exo", 2.7612307),  # ½ log(0.5/0.999) + ½ log(0.5/0.001) = −0.3460734 + 3.1073041
        ("nca", 2 * math.log(2)),
        ("bco_pair", 2 * math.log(2)),
        ("discopop", 0.8465736),  # ½·log 2 + ½·1
    ],
)
def test_start_value_by_default(name: str, expected: float) -> None:
    at_zero = LOSSES[name].at_zero
    assert at_zero is not None
    assert at_zero(LOSSES[name].defaults) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    beta=st.floats(0.01, 5),
    share=st.floats(0.01, 0.45),
    shift=st.floats(-5, 5, allow_subnormal=False),
    lengths=st.booleans(),
)
def test_start_value_is_the_loss_where_policy_equals_reference(
    beta: float, share: float, shift: float, lengths: bool
) -> None:
    own = {
        "label_smoothing": share,
        "flip_rate": share,
        "epsilon": share,
        "tau": share,
        "margin": share,
        "delta": shift,
    }
    logps = torch.tensor([-3.0, -250.0], dtype=torch.float64)
    pairs = PairLogps(logps, 2 * logps, torch.tensor([2, 9]), torch.tensor([5, 1]), logps, 2 * logps)
    for loss in LOSSES.values():
        assert (loss.at_zero is None) == (not loss.needs_reference)
        if loss.at_zero is not None:
            given_options = {"beta": beta, **{k: v for k, v in own.items() if k in loss.options.model_fields}}
            options = options_for(loss.name, given_options)
            parts = total(pairs, loss, options, length_normalized=lengths and not loss.per_token)
            assert parts.preference.tolist() == pytest.approx([loss.at_zero(options)] * 2, rel=1e-9, abs=1e-9)


logp = st.floats(-1e4, 0, allow_subnormal=False)
rows = st.lists(
    st.tuples(logp, logp, st.integers(1, 900), st.integers(1, 900), logp, logp), min_size=1, max_size=5
)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=20)
@given(table=rows, shuffle=st.randoms(use_true_random=False))
def test_pairs_do_not_know_each_other(name: str, table: list[tuple[float, ...]], shuffle) -> None:
    """Permuting pairs permutes losses and splitting a batch changes nothing, so packing may do both."""

    def losses(some: list[tuple[float, ...]]) -> list[float]:
        columns = torch.tensor(some, dtype=torch.float64).T
        return total(PairLogps(*columns), LOSSES[name], LOSSES[name].defaults, sft_weight=0.2).total.tolist()

    order = list(range(len(table)))
    shuffle.shuffle(order)
    together = losses(table)
    assert losses([table[i] for i in order]) == pytest.approx([together[i] for i in order], rel=1e-12)
    assert [losses([row])[0] for row in table] == pytest.approx(together, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=40)
@given(table=rows)
def test_values_and_gradients_stay_finite_in_single_precision(
    name: str, table: list[tuple[float, ...]]
) -> None:
    chosen, rejected, *rest = torch.tensor(table, dtype=torch.float32).T
    chosen.requires_grad_(), rejected.requires_grad_()
    loss = LOSSES[name]
    value = total(PairLogps(chosen, rejected, *rest), loss, loss.defaults, sft_weight=0.2).total
    gradients = torch.autograd.grad(value.sum(), (chosen, rejected))
    assert all(torch.isfinite(t).all() for t in (value, *gradients))


@pytest.mark.parametrize(
    ("name", "means"),
    [(n, means) for n, loss in LOSSES.items() for means in (False, True) if not (means and loss.per_token)],
)
def test_gradient_is_the_derivative(name: str, means: bool) -> None:
    loss = LOSSES[name]
    base = torch.tensor([[-3.1, -7.7, -40.2], [-9.3, -4.4, -35.9]], dtype=torch.float64)
    lengths = torch.tensor([3.0, 4.0, 11.0], dtype=torch.float64)

    def value(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        pairs = PairLogps(chosen, rejected, lengths, lengths + 1, base[0] - 0.7, base[1] + 0.4)
        options = {"sft_weight": 0.2, "length_normalized": means}
        return total(pairs, loss, loss.defaults, **options).total

    inputs = [row.clone().requires_grad_() for row in base]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize(
    "name", ["sigmoid", "hinge", "robust", "simpo", "orpo", "dpop", "apo_zero", "bco_pair"]
)
def test_never_rises_with_the_chosen_logp(name: str) -> None:
    value = LOSSES[name].function(gaps(torch.linspace(-300, 300, 2001).double()), **LOSSES[name].defaults)
    assert (value[1:] <= value[:-1] + 1e-12).all()


@pytest.mark.parametrize(
    ("name", "options", "best"),
    [
        ("ipo", {"beta": 0.1}, 5.0),  # 1/(2β)
        ("sppo", {"beta": 0.1}, 5.0),
        ("sigmoid", {"beta": 0.1, "label_smoothing": 0.2}, 10 * math.log(4)),  # log((1−ε)/ε)/β
        ("exo", {"beta": 0.1, "epsilon": 0.2}, 10 * math.log(4)),
        # d/dx of −1.5 log σ(x)... : with r_l fixed, −log σ(x) − ½ log σ(−x) is least where σ(−x) = ½ σ(x)
        ("nca", {"beta": 0.1}, 10 * math.log(2)),
    ],
)
def test_is_least_at_the_gap_that_theory_names(name: str, options: dict[str, float], best: float) -> None:
    values = torch.linspace(-60, 60, 120001).double()
    loss = LOSSES[name].function(gaps(values), **options_for(name, options))
    assert values[loss.argmin()].item() == pytest.approx(best, abs=2e-3)


def test_label_smoothing_acts() -> None:
    plain, smooth = (
        find("sigmoid").function(pair(), **options_for("sigmoid", {"label_smoothing": s})).item()
        for s in (0, 0.3)
    )
    assert smooth - plain == pytest.approx(0.3 * 0.5)  # ε·(−log σ(−x) + log σ(x)) = ε·x


def test_robust_is_unbiased_under_flipped_labels() -> None:
    """(1−ε)·loss(pair) + ε·loss(flipped pair) is the DPO loss of the pair (arXiv 2403.00409)."""
    pairs = pair()
    flipped = dataclasses.replace(
        pairs,
        chosen=pairs.rejected,
        rejected=pairs.chosen,
        reference_chosen=pairs.reference_rejected,
        reference_rejected=pairs.reference_chosen,
    )
    value = [find("robust").function(p, beta=0.1, flip_rate=0.3).item() for p in (pairs, flipped)]
    assert 0.7 * value[0] + 0.3 * value[1] == pytest.approx(LOG_S_HALF)


def test_sft_term_is_the_mean_nll_of_the_chosen_answer() -> None:
    parts = total(pair(), find("sigmoid"), options_for("sigmoid", {}), sft_weight=0.2)
    assert parts.sft.item() == pytest.approx(0.2 * 12 / 4)
    assert parts.total.item() == pytest.approx(LOG_S_HALF + 0.6)


def test_length_normalisation_divides_each_side_by_its_own_length() -> None:
    # 2/4 − (−3/5) = 1.1; β 5: −log σ(5.5) = log(1 + e^−5.5); the supervised term stays 12/4
    parts = total(pair(), find("sigmoid"), {"beta": 5.0}, sft_weight=1.0, length_normalized=True)
    assert parts.preference.item() == pytest.approx(math.log1p(math.exp(-5.5)))
    assert parts.sft.item() == pytest.approx(3.0)
    twice = pair().per_token().per_token()
    assert (twice.chosen.item(), twice.gap().item()) == pytest.approx((-3.0, 1.1))


def test_metrics_are_rewards_and_equal_ones_count_half() -> None:
    found = {key: value.item() for key, value in metrics(pair(), 0.1).items()}
    assert found == pytest.approx(
        {
            "rewards/chosen": 0.2,
            "rewards/rejected": -0.3,
            "rewards/accuracies": 1.0,
            "rewards/margins": 0.5,
            "logps/chosen": -12.0,
            "logps/rejected": -20.0,
            "lengths/chosen": 4.0,
            "lengths/rejected": 5.0,
        }
    )
    assert metrics(pair(-14, -17), 0.1)["rewards/accuracies"].item() == 0.5
    assert metrics(pair(-15, -17), 0.1)["rewards/accuracies"].item() == 0.0
    alone = dataclasses.replace(pair(), reference_chosen=None, reference_rejected=None)
    assert metrics(alone, 2.0)["rewards/margins"].item() == pytest.approx(2 * (-3 + 4))
    assert metrics(alone, 2.0)["logps/chosen"].item() == -12.0
    assert metrics(pair(), 5.0, length_normalized=True)["rewards/margins"].item() == pytest.approx(5.5)


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if not loss.needs_reference])
def test_losses_without_a_reference_run_without_one(name: str) -> None:
    alone = dataclasses.replace(pair(), reference_chosen=None, reference_rejected=None)
    assert torch.isfinite(LOSSES[name].function(alone, **LOSSES[name].defaults)).all()


@pytest.mark.trl
@pytest.mark.filterwarnings("ignore")
def test_orpo_and_simpo_agree_with_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL 1.16 keeps these two in methods that run alone; its DPO losses stand inside the training step."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl", reason="trl is in the dev extra")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = SimpleNamespace(
        beta=2.0,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo",
        simpo_gamma=1.0,
        label_smoothing=0.0,
        alpha=0.0,
    )
    pairs = PairLogps(*(torch.rand(6, 8) * torch.tensor([[-40], [-40], [20], [20], [-40], [-40]])))
    means = pairs.per_token()
    theirs = CPOTrainer.cpo_loss(trainer, means.chosen, means.rejected)[0]
    assert torch.allclose(find("simpo").function(pairs, beta=2.0, gamma=1.0), theirs, atol=1e-6)
    trainer.beta = 0.1
    odds_term = ORPOTrainer.odds_ratio_loss(trainer, means.chosen, means.rejected)[0]
    ours = find("orpo").function(pairs, beta=0.1)
    assert torch.allclose(ours, pairs.chosen_nll() - odds_term, atol=1e-5)
