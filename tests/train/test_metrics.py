import torch

from lite_align.train.metrics import Counted, Sums, means


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
    assert means(["loss"], torch.tensor([[0.0], [0.0]])) == {}


def test_sums_carry_no_graph():
    weight = torch.ones(1, requires_grad=True)
    sums = Sums()
    sums.add({"loss": (weight * 2).sum()}, 1)
    assert not sums.stacked()[1].requires_grad


def test_sums_over_a_part_are_divided_by_that_part_and_survive_a_checkpoint():
    """Rewards of 3 thumbs up (6 in all) and of 1 down in two micro-batches of 2; the second has no down."""
    sums = Sums()
    sums.add(
        {
            "loss": torch.tensor(3.0),
            "up": Counted(torch.tensor(1.0), 1),
            "down": Counted(torch.tensor(4.0), 1),
        },
        2,
    )
    sums.add({"loss": torch.tensor(5.0), "up": Counted(torch.tensor(5.0), 2)}, 2)
    expected = {"loss": 2.0, "up": 2.0, "down": 4.0}
    assert means(*sums.stacked()) == expected
    again = Sums()
    again.load_state(sums.state())
    assert means(*again.stacked()) == expected
    again.load_state({"sums": {"loss": 8.0}, "weight": 4.0})  # of a checkpoint without counts
    assert means(*again.stacked()) == {"loss": 2.0}
