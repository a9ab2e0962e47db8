import torch

from lite_align.train.metrics import Sums, means


def test_means_are_weighted_by_examples_not_by_microbatches():
    sums = Sums()
    sums.add({"loss": torch.tensor(2.0)}, 1)  # one example with loss 2
    sums.add({"loss": torch.tensor(3.0)}, 3)  # three examples with loss 1 each
    assert means(*sums.stacked()) == {"loss": 5.0 / 4}


def test_reset_forgets():
    sums = Sums()
    sums.add({"loss": torch.tensor(2.0)}, 1)
    sums.reset()
    assert sums.weight == 0
    sums.add({"loss": torch.tensor(8.0)}, 2)
    assert means(*sums.stacked()) == {"loss": 4.0}


def test_no_example_has_no_mean():
    assert means(["loss"], torch.tensor([0.0, 0.0])) == {}


def test_sums_carry_no_graph():
    weight = torch.ones(1, requires_grad=True)
    sums = Sums()
    sums.add({"loss": (weight * 2).sum()}, 1)
    assert not sums.stacked()[1].requires_grad
