"""Scores of any answers, rendered, cut and read as in training: by one encoder (rule LA502)."""

from collections.abc import Sequence

import torch

from lite_align.data import forest
from lite_align.data.comparisons import bundle, judged, up_to_score
from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Conversation, Rendered, Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.stages import passes
from lite_align.train.faults import TokenBudget

Ids = tuple[int, ...]


def sequences(
    renderer: Renderer, examples: Sequence[tuple[Conversation, Conversation]], suffix: str | None
) -> list[Rendered | Unusable]:
    """Prompts and answers as tokens that end where the score is read.

    Args:
        renderer: of the base.
        examples: prompt and answer each.
        suffix: `loss.judge_suffix` of the reward model.
    """
    rendered = renderer.conversations([(prompt, judged(answer, suffix)) for prompt, answer in examples])
    return [cut(one, renderer, suffix) for one in rendered]


def cut(rendered: Rendered | Unusable, renderer: Renderer, suffix: str | None) -> Rendered | Unusable:
    """End a conversation where its score is read, at the template's stop token if no judge follows."""
    if isinstance(rendered, Unusable):
        return rendered
    scored = up_to_score(rendered, judged=suffix is not None)
    if suffix is None and scored.ids[-1] != renderer.turn_end:
        return Unusable("template", "LA502: the template ends this answer without its stop token")
    return scored


@torch.no_grad()
def score(
    backbone: Backbone, prompts: Sequence[tuple[int, Sequence[Ids]]], budget: TokenBudget
) -> list[list[float]]:
    """Scores of sequences under REWARD.

    Args:
        backbone: with the REWARD role.
        prompts: for each prompt, its tokens and the sequences that begin with them.
        budget: tokens of a pass.
    """
    owners: list[int] = []
    trees: list[Tree] = []
    for number, (prompt, ids) in enumerate(prompts):
        own = bundle(prompt, ids, most_tokens=budget.tokens)
        trees += own
        owners += [number] * len(own)

    def measured(pack: list[Tree]) -> list[list[float]]:
        batch = passes.to_batch(pack, backbone.device)
        with backbone.role(Role.REWARD):
            scores = backbone.scores(batch).tolist()
        return [scores[a:b] for a, b in zip(batch.first_leaf, batch.first_leaf[1:])]

    packs = forest.pack(trees, budget.tokens)
    by_tree: dict[int, list[float]] = {}
    for pack, found in passes.in_packs(trees, packs, measured, budget, where="the scoring of answers"):
        by_tree |= dict(zip(pack, found, strict=True))
    scores: list[list[float]] = [[] for _ in prompts]
    for place, owner in enumerate(owners):
        scores[owner] += by_tree[place]
    return scores
