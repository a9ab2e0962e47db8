"""Log-ratios and means of answer pairs."""

import pytest
import torch

from lite_align.losses.pairs import PairLogps


def test_gap_and_means_on_two_pairs() -> None:
    pairs = PairLogps(
        chosen=torch.tensor([-6.0, -1.0]),
        rejected=torch.tensor([-8.0, -9.0]),
        chosen_lengths=torch.tensor([3, 1]),
        rejected_lengths=torch.tensor([2, 3]),
        reference_chosen=torch.tensor([-9.0, -2.0]),
        reference_rejected=torch.tensor([-6.0, -3.0]),
    )
    assert pairs.chosen_ratio().tolist() == [3, 1]
    assert pairs.rejected_ratio().tolist() == [-2, -6]
    assert pairs.gap().tolist() == [5, 7]
    assert pairs.chosen_nll().tolist() == [2, 1]
    means = pairs.per_token()
    assert means.chosen.tolist() == [-2, -1]
    assert means.rejected.tolist() == [-4, -3]
    assert means.gap().tolist() == [1 + 1, 1 + 2]  # 3/3 − (−2/2), 1/1 − (−6/3)
    assert means.chosen_nll().tolist() == [2, 1]


def test_a_loss_with_a_reference_says_so_when_there_is_none() -> None:
    one = torch.ones(1)
    with pytest.raises(AssertionError, match="reference"):
        PairLogps(-one, -one, one, one).gap()
