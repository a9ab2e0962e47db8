"""The scalar head of a role that scores a sequence: one fp32 vector, kept beside the adapter and never inside it.

Shape letters: H hidden size.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lite_align.errors import ModelError

FILE = "head.safetensors"
NAME = "score.weight"


def create(size: int, *, seed: int, device: torch.device) -> nn.Parameter:
    """A head (H,) drawn from N(0, 1 / (H + 1)), the same on every device.

    Source: arXiv 2009.01325 (Learning to summarize), appendix B.1.
    """
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((torch.randn(size, generator=generator) / (size + 1) ** 0.5).to(device))


def save_head(head: Tensor, folder: Path) -> None:
    """Write a head beside the adapter that it belongs to."""
    values = {NAME: head.detach().cpu().contiguous().clone()}
    (folder / FILE).write_bytes(save(values, metadata={"format": "pt"}))


def read(folder: Path) -> Tensor:
    """Read the head of an adapter folder.

    Raises:
        ModelError: there is none, or it is no head.
    """
    try:
        values = load_file(folder / FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no scalar head that can be read: {error}",
            remedy=f"A reward adapter has {FILE} beside it; use the adapters/reward folder of a reward run.",
        ) from error
    if set(values) != {NAME}:
        raise ModelError(
            f"{folder / FILE} holds {', '.join(sorted(values)) or 'nothing'} and not {NAME}.",
            remedy="Use the adapters/reward folder of a reward run.",
        )
    return values[NAME]


def check(values: Mapping[str, Tensor], head: Tensor) -> None:
    """Check that the values of an adapter bring a head of the right shape.

    Raises:
        ModelError: it is missing, of another shape, or not finite.
    """
    found = values.get(NAME)
    if found is None:
        problem = "is missing"
    elif found.shape != head.shape:
        problem = f"has the shape {tuple(found.shape)} and not {tuple(head.shape)}"
    elif not torch.isfinite(found).all():
        problem = "is not finite"
    else:
        return
    raise ModelError(
        f"The scalar head does not fit this model: {NAME} {problem}.",
        remedy="Use the base model and the adapters/reward folder that belong together.",
    )
