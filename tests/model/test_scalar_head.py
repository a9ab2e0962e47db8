"""The scalar head: its start, its file, and what is refused (roles with a head: test_backbone)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lite_align.errors import ModelError
from lite_align.model import scalar_head


def test_the_start_depends_on_the_seed_alone():
    device = torch.device("cpu")
    first = scalar_head.create(4096, seed=1, device=device)
    assert first.dtype == torch.float32
    assert first.requires_grad
    assert torch.equal(first, scalar_head.create(4096, seed=1, device=device))
    assert not torch.equal(first, scalar_head.create(4096, seed=2, device=device))
    assert float(first.detach().std() * 4097**0.5) == pytest.approx(1.0, abs=0.05)


def test_a_head_comes_back_exactly_as_a_named_tensor(tmp_path: Path):
    head = scalar_head.create(64, seed=3, device=torch.device("cpu"))
    scalar_head.save_head(head, tmp_path)
    assert set(load_file(tmp_path / "head.safetensors")) == {"score.weight"}
    assert torch.equal(scalar_head.read(tmp_path), head)


def test_a_torn_file_is_told(tmp_path: Path):
    scalar_head.save_head(torch.ones(8), tmp_path)
    file = tmp_path / "head.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ModelError, match="no scalar head that can be read"):
        scalar_head.read(tmp_path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "is missing"),
        ({"score.weight": torch.zeros(1, 8)}, r"has the shape \(1, 8\) and not \(8,\)"),
        ({"score.weight": torch.full((8,), float("inf"))}, "is not finite"),
    ],
)
def test_what_does_not_fit_is_named(values: dict, told: str):
    with pytest.raises(ModelError, match=told):
        scalar_head.check(values, torch.zeros(8))
    scalar_head.check({"score.weight": torch.ones(8)}, torch.zeros(8))
