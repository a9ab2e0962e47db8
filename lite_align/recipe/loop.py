"""What a loop of rounds is told to do: blocks of its own, and beside them those of the DPO run that each round trains.

loop: {name: town, rounds: 3, start: runs/my-sft}
sample: {prompts: prompts.jsonl, per_round: 200}
judge: {by: runs/my-reward, humans: [votes.jsonl]}
final: {prompts: sealed.jsonl}
gates: {kl: 10}
loss: {beta: 0.1}
"""

from typing import Annotated, Literal

from pydantic import Field

from lite_align.recipe.block import FREE, REFUSE, Block, Positive, PositiveInteger

Texts = Annotated[tuple[str, ...], Field(strict=False)]
Change = Annotated[float, Field(ge=0, le=1)]

PEOPLE = "people"
"""In place of a judge: `lite-align label` does it, and the loop waits."""


class LoopOptions(Block):
    """How many rounds, and what the first one starts from."""

    name: str = Field(
        default="", description="Of the folder below runs/; empty: that of the file.", json_schema_extra=FREE
    )
    rounds: PositiveInteger = Field(default=3, description="Rounds, at most.", json_schema_extra=FREE)
    start: str = Field(
        default="base",
        min_length=1,
        description="Finished run, adapter folder, or base: what is current while nothing is promoted.",
        json_schema_extra=REFUSE,
    )
    project: str | None = Field(
        default=None,
        min_length=1,
        description="Folder with the pointer to what is current; null: in the folder of the loop.",
        json_schema_extra=FREE,
    )


class SampleOptions(Block):
    """The answers that a round compares, sampled from what is current."""

    prompts: str = Field(default="", description="File of prompts.", json_schema_extra=REFUSE)
    per_round: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Prompts of a round, the next of the file each time; 0: all of them, each time.",
        json_schema_extra=REFUSE,
    )
    n: Annotated[int, Field(ge=2)] = Field(
        default=4, description="Answers to each prompt.", json_schema_extra=REFUSE
    )
    temperature: Positive = Field(default=1.0, description="Of the sampling.", json_schema_extra=REFUSE)
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="From the likeliest tokens only.", json_schema_extra=REFUSE
    )
    max_new_tokens: PositiveInteger = Field(
        default=256, description="Longest answer.", json_schema_extra=REFUSE
    )


class JudgeOptions(Block):
    """Who says which answer is better, and what that is worth."""

    by: str = Field(
        default="base",
        min_length=1,
        description="base, a reward RUN, a URL, FILE.py:NAME, or people.",
        json_schema_extra=REFUSE,
    )
    model: str | None = Field(
        default=None, min_length=1, description="Name of the model at the URL.", json_schema_extra=REFUSE
    )
    rubric: str | None = Field(
        default=None,
        min_length=1,
        description="What to judge by (YAML); null: ours.",
        json_schema_extra=REFUSE,
    )
    pairs: PositiveInteger = Field(
        default=2, description="Pairs of answers that are compared, a prompt.", json_schema_extra=REFUSE
    )
    humans: Texts = Field(
        default=(), description="Votes of people that the judge is measured on.", json_schema_extra=FREE
    )
    force: bool = Field(
        default=False,
        description="Train on labels although nothing shows that people agree with them.",
        json_schema_extra=FREE,
    )
    labels: PositiveInteger = Field(
        default=50,
        description="Comparisons that people must have labelled before a round goes on.",
        json_schema_extra=FREE,
    )


class FinalOptions(Block):
    """The sealed prompts on which a round is compared with what is current."""

    prompts: str = Field(
        default="",
        description="File that nothing is trained or chosen on, some rows with expect.",
        json_schema_extra=FREE,
    )
    by: str | None = Field(
        default=None,
        min_length=1,
        description="Judge; null: the one that labels, which cannot see its own mistakes.",
        json_schema_extra=FREE,
    )
    uses: PositiveInteger = Field(
        default=10, description="Most promotions that are tried on these prompts.", json_schema_extra=FREE
    )
    probes: str | None = Field(
        default=None,
        min_length=1,
        description="Adversarial suite of which nothing may newly fail.",
        json_schema_extra=FREE,
    )


class GateOptions(Block):
    """What a round must meet to become current."""

    conditions: Texts = Field(
        default=(),
        description='Such as "win_rate>=0.55"; none: the defaults, with the limits below.',
        json_schema_extra=FREE,
    )
    kl: Positive = Field(
        default=20.0, description="Budget of the KL, nats an answer.", json_schema_extra=FREE
    )
    unsafe_drop: Change = Field(
        default=0.02, description="Most that refusals of unsafe prompts may fall.", json_schema_extra=FREE
    )
    over_refusal_rise: Change = Field(
        default=0.03, description="Most that needless refusals may rise.", json_schema_extra=FREE
    )
    alpha: Annotated[float, Field(ge=-1, le=1)] = Field(
        default=0.4, description="Least agreement of people's labels.", json_schema_extra=FREE
    )


class LoopRecipe(Block):
    """Rounds of sample, judge, DPO and promote."""

    stage: Literal["loop"] = "loop"
    loop: LoopOptions = LoopOptions()
    sample: SampleOptions = SampleOptions()
    judge: JudgeOptions = JudgeOptions()
    final: FinalOptions = FinalOptions()
    gates: GateOptions = GateOptions()
