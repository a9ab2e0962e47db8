"""Agreement: KL and shares worked by hand on models of two tokens."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lite_align.export import probes
from lite_align.export.probes import Agreement, Answers


class Fixed(nn.Module):
    """Says the same log-odds of token 1 everywhere."""

    device = torch.device("cpu")

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.logits = torch.tensor([math.log(1 - probability), math.log(probability)])

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.logits.expand(1, input_ids.shape[1], 2))


def heard(probability: float) -> Answers:
    model = Fixed(probability)
    prompts, ids = [(0, 1), (1,)], [(1, 1, 0), (1,)]
    return Answers(prompts, ids, [probes.log_probs(model, p, a) for p, a in zip(prompts, ids, strict=True)])


def test_kl_and_top_by_hand():
    # KL(0.9 ‖ 0.6) of a coin: 0.9 ln(0.9 / 0.6) + 0.1 ln(0.1 / 0.4) = 0.364919 - 0.138629.
    found = probes.compare(Fixed(0.6), heard(0.9))  # pyright: ignore[reportArgumentType]
    assert found.kl == pytest.approx(0.226290, abs=1e-5)
    assert (found.same_top, found.tokens, found.same_tokens) == (1.0, 4, None)
    other = probes.compare(Fixed(0.4), heard(0.9), decode=lambda: [(1, 0), (0,)])  # pyright: ignore[reportArgumentType]
    assert other.same_top == 0.0
    assert other.same_tokens == 0.25
    same = probes.compare(Fixed(0.9), heard(0.9))  # pyright: ignore[reportArgumentType]
    assert same.kl < 1e-9


def test_log_probs_are_those_that_predict_the_answer():
    assert probes.log_probs(Fixed(0.9), (0, 1), (1, 1, 0)).shape == (3, 2)


def test_same_tokens_counts_places():
    assert probes.same_tokens([(1, 2, 3)], [(1, 9)]) == pytest.approx(1 / 3)
    assert probes.same_tokens([(1, 2), (3,)], [(1, 2), (3,)]) == 1.0
    assert probes.same_tokens([], []) == 1.0


@pytest.mark.parametrize(
    ("kl", "top", "acceptable"), [(3e-5, 0.996, True), (1.4e-3, 0.992, False), (3e-5, 0.97, False)]
)
def test_the_bounds(kl, top, acceptable):
    assert Agreement(kl, top, None, 500).acceptable is acceptable
