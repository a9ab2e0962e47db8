"""A reward run as judge: the scores of both answers, which no order and no text in them can change."""

import math
from collections.abc import Sequence

from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Conversation, Message, Rendered
from lite_align.data.votes import Comparison, Source
from lite_align.errors import UserError
from lite_align.flywheel.judges.judgement import Advance, Judgement, Reply, orderless
from lite_align.model.backbone import Backbone, Role, adapter_digest
from lite_align.stages import scoring
from lite_align.stages.scoring import Ids
from lite_align.train.faults import TokenBudget
from lite_align.train.finished import FinishedRun, attach

TOGETHER = 256
"""Comparisons that are scored together; those of one prompt share it."""


class RewardJudge:
    """Prefers what scores higher: P(a is better) = σ(score(a) − score(b)), as the run was trained (Bradley–Terry).

    Args:
        run: a reward run on the base of the backbone (see `read_reward`).
        backbone: gets the REWARD role from the run.
        renderer: of the base.
        budget: tokens of a pass.
        positions: longest row that the model can read.

    Raises:
        UserError: the run was trained on another base.
    """

    kind: Source = "reward"
    rubric = None

    def __init__(
        self, run: FinishedRun, backbone: Backbone, renderer: Renderer, budget: TokenBudget, positions: int
    ) -> None:
        _require_base(run, backbone)
        adapter = run.adapter(Role.REWARD)
        attach(backbone, Role.REWARD, adapter)
        self.name = f"reward {run.folder.name} {adapter_digest(adapter)[:8]}"
        suffix = (run.record.get("reward") or {}).get("judge_suffix")
        self._suffix = None if suffix is None else str(suffix)
        self._backbone, self._renderer, self._budget, self._positions = backbone, renderer, budget, positions
        self._tokens = 0

    def judge(
        self, comparisons: Sequence[Comparison], advance: Advance = lambda count: None
    ) -> list[Judgement]:
        """See `Judge`; `a` and `b` of the same comparisons give the same scores in whatever order they stand."""
        found: list[Judgement] = []
        for start in range(0, len(comparisons), TOGETHER):
            some = comparisons[start : start + TOGETHER]
            scores = self.scores([(one.prompt, text) for one in some for text in (one.a, one.b)])
            found += [orderless(one, _reply(*scores[2 * n : 2 * n + 2])) for n, one in enumerate(some)]
            advance(len(some))
        return found

    def tell(self) -> list[str]:
        """See `Judge`."""
        return [f"{self._tokens:,} tokens read"]

    def close(self) -> None:
        """See `Judge`."""

    def scores(self, answers: Sequence[tuple[Conversation, str]]) -> list[float | Unusable]:
        """Raw scores; the prompt is computed once for all its answers, and an answer once however often it stands."""
        sequences = dict(zip(answers, self._sequences(answers), strict=True))
        prompts: dict[Ids, list[Ids]] = {}
        for one in sequences.values():
            if isinstance(one, Rendered):
                prompts.setdefault(_prompt(one), []).append(one.ids)
        self._tokens += sum(
            len(prompt) + sum(len(ids) - len(prompt) for ids in set(own)) for prompt, own in prompts.items()
        )
        asked = [(len(prompt), list(dict.fromkeys(own))) for prompt, own in prompts.items()]
        scores = scoring.score(self._backbone, asked, self._budget)
        by_ids = {
            ids: score
            for (_, own), found in zip(asked, scores, strict=True)
            for ids, score in zip(own, found, strict=True)
        }
        return [
            by_ids[one.ids] if isinstance(one, Rendered) else one
            for one in map(sequences.__getitem__, answers)
        ]

    def _sequences(self, answers: Sequence[tuple[Conversation, str]]) -> list[Rendered | Unusable]:
        """Answers as tokens up to where their scores are read; an empty one is its stop token alone."""
        texts = [text if text.strip() else _PLACEHOLDER for _, text in answers]
        examples = [
            (prompt, (Message("assistant", text),)) for (prompt, _), text in zip(answers, texts, strict=True)
        ]
        found = scoring.sequences(self._renderer, examples, self._suffix)
        found = [
            _emptied(one) if isinstance(one, Rendered) and not text.strip() else one
            for one, (_, text) in zip(found, answers, strict=True)
        ]
        return [
            Unusable("too_long", f"{len(one.ids):,} tokens; the model has {self._positions:,} positions")
            if isinstance(one, Rendered) and len(one.ids) > self._positions
            else one
            for one in found
        ]


def _require_base(run: FinishedRun, backbone: Backbone) -> None:
    loaded, theirs = backbone.loaded, run.recipe.model
    known = (run.record.get("hashes") or {}).get("base")
    dtype = str(loaded.dtype).removeprefix("torch.")
    if known in (None, loaded.identity["base"]) and (theirs.quantization, theirs.dtype) == (
        loaded.quantization,
        dtype,
    ):
        return
    raise UserError(
        f"The reward model {run.folder} was trained on another base: its scores would mean nothing.",
        details=[
            f"{run.folder}: {theirs.name}, {theirs.quantization}, {theirs.dtype}",
            f"here: {loaded.name}, {loaded.quantization}, {dtype}",
        ],
        remedy="Give a reward run on the same base, quantisation and dtype.",
    )


_PLACEHOLDER = "An answer"


def _prompt(rendered: Rendered) -> Ids:
    return rendered.ids[: rendered.trained.index(True)]


def _emptied(rendered: Rendered) -> Rendered:
    """A sequence without the text of its answer: the prompt, then the stop token and what follows it."""
    first, last = rendered.trained.index(True), len(rendered.trained) - 1 - rendered.trained[::-1].index(True)
    return Rendered(
        rendered.ids[:first] + rendered.ids[last:], rendered.trained[:first] + rendered.trained[last:]
    )


def _reply(a: float | Unusable, b: float | Unusable) -> Reply:
    if isinstance(a, Unusable) or isinstance(b, Unusable):
        unusable = a if isinstance(a, Unusable) else b
        assert isinstance(unusable, Unusable)
        return Reply.failed(unusable.reason.replace("_", " "), unusable.detail)
    return Reply.likely(sigmoid(a - b))


def sigmoid(x: float) -> float:
    """σ(x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
