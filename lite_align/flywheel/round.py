"""One round of a loop: sample, label or judge, check, DPO, and the gate. Every step stands in a file and is made once.

round-1/candidates.jsonl   answers of what is current
round-1/votes.jsonl        which of them is better
round-1/pairs.jsonl        what is trained on
round-1/dpo/               the run, with promotion.json
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lite_align.assets import world
from lite_align.data import lint
from lite_align.data.majority import decide
from lite_align.data.votes import Vote, latest
from lite_align.errors import GateFailed
from lite_align.evaluate.agreement import TooFew, agreement, kappa
from lite_align.evaluate.gates import Limits
from lite_align.flywheel import agreement as labels
from lite_align.flywheel import items, judge, promotion, sample, sides
from lite_align.flywheel.judges.humans import FEWEST_COMMON
from lite_align.flywheel.judges.opening import Asked
from lite_align.flywheel.label.command import votes_path
from lite_align.flywheel.sides import BASE
from lite_align.model import load
from lite_align.recipe import PEOPLE, Loop, Resolved, to_dict
from lite_align.stages import session
from lite_align.stages.command import CommandOptions
from lite_align.stages.speaker import Sampling
from lite_align.stages.training import train
from lite_align.train.faults import free_memory
from lite_align.train.record import RECORD, read_record
from lite_align.view import View


class Waiting(Exception):
    """A round cannot go on before people have labelled; its text says how many are missing."""


@dataclass(frozen=True)
class Round:
    """A round and where it is.

    Attributes:
        number: from 1.
        plan: of the loop.
        folder: of the round.
        project: folder of the pointer.
        current: what it starts from, as `sides.find` takes it.
    """

    number: int
    plan: Loop
    folder: Path
    project: Path
    current: str

    @property
    def candidates(self) -> Path:
        """Answers to compare."""
        return self.folder / "candidates.jsonl"

    @property
    def by_people(self) -> bool:
        """Whether people label."""
        return self.plan.own.recipe.judge.by == PEOPLE

    @property
    def votes(self) -> Path:
        """Labels."""
        return votes_path(str(self.candidates)) if self.by_people else self.folder / "votes.jsonl"

    @property
    def pairs(self) -> Path:
        """What is trained on."""
        return self.folder / "pairs.jsonl"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "dpo"


def prepare(one: Round, view: View) -> None:
    """Sample, label and check, until the pairs of the round are there.

    Raises:
        Waiting: people have to label first.
        GateFailed: the labels are not good enough.
    """
    if one.pairs.exists():
        return
    one.folder.mkdir(parents=True, exist_ok=True)
    _sample(one, view)
    free_memory()  # every step loads its base, and plans with what is free
    if one.by_people:
        _require_labels(one)
    else:
        _judge(one, view)
    found = labels.read([str(one.votes)])
    if one.by_people:
        _require_agreement(one, found.votes)
    rows = labels.pair_rows(decide(found.votes), found.places)
    if not rows:
        raise GateFailed(
            f"No comparison of {one.votes} has a better answer, so round {one.number} has nothing to learn from.",
            remedy="A judge that always ties is none: take another (judge.by), or sample hotter.",
        )
    lint.write_rows(rows, one.pairs)
    free_memory()


def _sample(one: Round, view: View) -> None:
    recipe = one.plan.own.recipe.sample
    skip = (one.number - 1) * recipe.per_round
    drawn = Sampling(recipe.temperature, recipe.top_p, recipe.max_new_tokens, seed_of(one))
    options = sample.Options(
        recipe.prompts,
        recipe.n,
        drawn,
        out=one.candidates,
        model=base_of(one),
        skip=skip,
        prompts=recipe.per_round or None,
    )
    sample.sample(one.current, options, view)


def base_of(one: Round) -> str:
    """Name of the base: that of what is current, or else of the recipe."""
    known = sides.find(one.current).model
    return known.name if known else load.choose(one.plan.dpo.recipe.model, device=session.device()).name


def seed_of(one: Round) -> int:
    """Seed of a round's sampling: a round draws other answers than the one before."""
    return one.plan.dpo.recipe.train.seed + one.number


def _judge(one: Round, view: View) -> None:
    recipe = one.plan.own.recipe.judge
    asked = judge_of(one.plan, recipe.by)
    if recipe.by == BASE:
        asked = replace(asked, model=base_of(one))
    given = judge.JudgeOptions(
        asked, out=one.votes, humans=recipe.humans, pairs=recipe.pairs, force=recipe.force
    )
    judge.judge(str(one.candidates), given, view)


def judge_of(plan: Loop, by: str) -> Asked:
    """A judge, as the loop has it."""
    recipe = plan.own.recipe.judge
    reads = by == BASE or "://" in by
    rubric = Path(recipe.rubric) if recipe.rubric and reads else None
    return Asked(by=by, model=recipe.model, rubric=rubric, seed=plan.dpo.recipe.train.seed)


def _require_labels(one: Round) -> None:
    recipe = one.plan.own.recipe.judge
    found = items.read(str(one.candidates), pairs=recipe.pairs)
    given = items.read(str(one.votes)).votes if one.votes.exists() else ()
    done = len({vote.comparison.id for vote in latest(given)} & {item.id for item in found.comparisons})
    wanted = min(recipe.labels, len(found.comparisons))
    if done < wanted:
        raise Waiting(f"{done:,} of {wanted:,} comparisons of round {one.number} are labelled")


def _require_agreement(one: Round, votes: Sequence[Vote]) -> None:
    """Refuse labels of people that nobody else has confirmed, unless the recipe forces them."""
    recipe = one.plan.own.recipe
    alpha = agreement(votes).alpha
    if recipe.judge.force or (not isinstance(alpha, TooFew) and alpha.value >= recipe.gates.alpha):
        return
    raise GateFailed(
        f"The labels of round {one.number} cannot be used. {labels.verdict(alpha)}",
        details=[f"lite-align agreement {one.votes} shows where annotators differ."],
        remedy="Let another person label too, and give the command again; judge.force: true trains on them.",
    )


# Training and the gate.


def resolved(one: Round, *, data: str) -> Resolved[Any]:
    """The DPO recipe of a round: on a file of pairs, from what is current."""
    nested = to_dict(one.plan.dpo.recipe)
    origin = f"round {one.number}"
    filled = {"data.path": data}
    if one.current != BASE:
        filled["model.adapter"] = one.current
    for key, value in filled.items():
        block, _, name = key.partition(".")
        nested[block][name] = value
    recipe = type(one.plan.dpo.recipe).model_validate(nested)
    return Resolved(recipe, {**one.plan.dpo.provenance, **dict.fromkeys(filled, origin)})


def learn(one: Round, command: str, view: View) -> None:
    """Train the run of the round, or what is left of it."""
    if (one.run / RECORD).exists() and read_record(one.run)["status"] == "finished":
        return
    train(
        resolved(one, data=str(one.pairs)),
        CommandOptions(one.run, resume=one.run.is_dir(), command=command),
        view,
    )
    free_memory()


def decide_on(one: Round, view: View) -> bool:
    """Compare the run with what is current on the sealed prompts, and promote it if every gate passes."""
    return promotion.promote(str(one.run), promotion_of(one), view) == 0


def promotion_of(one: Round) -> promotion.Options:
    """How the run of a round is promoted."""
    recipe = one.plan.own.recipe
    limits = recipe.gates.model_dump(exclude={"conditions"})
    return promotion.Options(
        folder=one.project,
        final=recipe.final.prompts,
        uses=recipe.final.uses,
        judge=judge_of(one.plan, recipe.final.by or recipe.judge.by),
        probes=recipe.final.probes,
        labels=str(one.votes) if one.by_people and not recipe.judge.force else None,
        sampling=Sampling(
            recipe.sample.temperature,
            recipe.sample.top_p,
            recipe.sample.max_new_tokens,
            one.plan.dpo.recipe.train.seed,
        ),
        gates=recipe.gates.conditions,
        limits=Limits(**limits),
        who=None,
        why=f"round {one.number} of the loop {one.plan.name}",
        start=recipe.loop.start,
    )


# What the labels of a round are worth.


def worth(one: Round) -> dict[str, Any]:
    """Agreement of the labels of a round: with people, among people, and with the rule of the built-in world.

    Figures as in `agreement --json`; those that were not measured are left out.
    """
    votes = items.read(str(one.votes)).votes
    found: dict[str, Any] = {}
    if one.by_people:
        found["alpha"] = labels.figure_record(agreement(votes).alpha)
    elif (people := _judged_by_people(one)) is not None:
        found["kappa"] = people
    if (rule := _rule_kappa(votes)) is not None:
        found["rule"] = rule
    return found


def _judged_by_people(one: Round) -> Mapping[str, Any] | None:
    stored = judge.stored(one.votes)
    figures = [entry["agreement"]["figures"]["kappa"] for entry in stored.values()]
    return figures[-1] if figures and figures[-1]["value"] is not None else None


def _rule_kappa(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """Cohen's kappa with what the built-in world's rule says of the texts; None for prompts from elsewhere."""
    pairs: list[tuple[str, str]] = []
    for vote in latest(votes):
        prompt = vote.comparison.prompt
        ask = world.find(prompt[-1].content) if len(prompt) == 1 else None
        if ask is None:
            return None
        a, b = (world.score(ask, text, ended=True).total for text in (vote.comparison.a, vote.comparison.b))
        pairs.append((vote.choice, "a" if a > b else "b" if b > a else "tie"))
    figure = kappa(pairs, fewest=FEWEST_COMMON)
    return labels.figure_record(figure)
