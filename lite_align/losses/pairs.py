"""Log-probs of answer pairs: what a preference loss is a function of."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of B pairs under policy and reference.

    `chosen`, `rejected`, `reference_chosen`, `reference_rejected`: (B,) sums over trained tokens, in nats;
    `chosen_lengths`, `rejected_lengths`: (B,) numbers of trained tokens, the end token included. Without a
    reference both of its fields are None. `margin`: (B,) how much better the chosen answer was rated, where
    the data say so; a loss may use it, none here does.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    margin: Tensor | None = None

    def chosen_ratio(self) -> Tensor:
        """r_w: log π − log ref of the chosen answers, (B,)."""
        assert self.reference_chosen is not None, "this loss needs reference log-probs"
        return self.chosen - self.reference_chosen

    def rejected_ratio(self) -> Tensor:
        """r_l: log π − log ref of the rejected answers, (B,)."""
        assert self.reference_rejected is not None, "this loss needs reference log-probs"
        return self.rejected - self.reference_rejected

    def gap(self) -> Tensor:
        """r_w − r_l: how much more the policy prefers the chosen answer than the reference does, (B,)."""
        return self.chosen_ratio() - self.rejected_ratio()

    def per_token(self) -> "PairLogps":
        """The same pairs with means over trained tokens instead of sums.

        Lengths become 1, so that a second call changes nothing.
        """
        chosen, rejected = self.chosen_lengths.clamp(min=1), self.rejected_lengths.clamp(min=1)
        reference_chosen, reference_rejected = self.reference_chosen, self.reference_rejected
        return replace(
            self,
            chosen=self.chosen / chosen,
            rejected=self.rejected / rejected,
            reference_chosen=None if reference_chosen is None else reference_chosen / chosen,
            reference_rejected=None if reference_rejected is None else reference_rejected / rejected,
            chosen_lengths=torch.ones_like(self.chosen_lengths),
            rejected_lengths=torch.ones_like(self.rejected_lengths),
        )

    def chosen_nll(self) -> Tensor:
        """−log π(w)/|w|: the loss of supervised fine-tuning on the chosen answers, (B,), nats per token."""
        return -self.chosen / self.chosen_lengths.clamp(min=1)
