"""What a recipe can say: one frozen, strict model for each stage, every setting with its help text.

Each setting also carries its drift class, which tells what a resumed run does when the value has changed:
`refuse` (it would be another run), `ask` (only with `--accept-drift KEY`) or `free`.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from lite_align.recipe.block import ASK, FREE, REFUSE, Auto, Block, Positive, PositiveInteger, Share
from lite_align.recipe.ppo import GuardOptions, PPOOptions

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

TrainOn = Literal["all_turns", "last_turn", "all_tokens"]


class ModelOptions(Block):
    """Which base model, and how it is held in memory."""

    name: str = Field(
        default="auto",
        min_length=1,
        description="Folder, hub id or `tiny` (built in); auto: the best open model that fits the GPU.",
        json_schema_extra=REFUSE,
    )
    revision: str | None = Field(
        default=None, description="Commit of a hub model; null: the newest.", json_schema_extra=REFUSE
    )
    adapter: str | None = Field(
        default=None,
        min_length=1,
        description="Finished run or adapter folder to continue (--from); null: a new adapter on the base.",
        json_schema_extra=REFUSE,
    )
    quantization: Literal["auto", "none", "nf4", "int8"] = Field(
        default="auto",
        description="Storage of the frozen base; auto: nf4 on a GPU, none on a CPU.",
        json_schema_extra=REFUSE,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the base; auto: bfloat16 on a GPU that has it.",
        json_schema_extra=REFUSE,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] | PositiveInteger = Field(
        default="auto",
        description="Recompute activations: in all blocks, in none, or in so many.",
        json_schema_extra=ASK,
    )


class DataOptions(Block):
    """Which rows are read, and which of them are left out."""

    path: str = Field(
        default="", description="File, folder or hub id; normally the argument DATA.", json_schema_extra=FREE
    )
    format: str = Field(
        default="auto",
        description="Name of the row format; auto: a vote over all rows.",
        json_schema_extra=REFUSE,
    )
    map: dict[str, str] = Field(
        default={}, description="Own column names: {chosen: my_column}.", json_schema_extra=REFUSE
    )
    max_length: Annotated[int, Field(ge=16)] | Auto = Field(
        default="auto",
        description="Longest prompt with answer; auto: the model's positions, at most 2,048.",
        json_schema_extra=REFUSE,
    )
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05,
        description="Share of rows that may be left out; above it the run stops.",
        json_schema_extra=FREE,
    )
    held_out: Share | Auto = Field(
        default="auto",
        description="Share of prompts kept for evaluation; auto: 0.1, at most 512 rows.",
        json_schema_extra=REFUSE,
    )
    held_out_path: str | None = Field(
        default=None, description="A file of held-out rows, in place of a share.", json_schema_extra=REFUSE
    )
    skip_bad: Annotated[int, Field(ge=0)] = Field(
        default=0, description="How many unreadable rows may be passed over.", json_schema_extra=FREE
    )
    accept: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Data rules whose warning is accepted: [LA305].",
        json_schema_extra=REFUSE,
    )
    truncate: Literal["oldest_turns", "never"] = Field(
        default="oldest_turns",
        description="Too long: drop old turns of the prompt, or leave the row out.",
        json_schema_extra=REFUSE,
    )


class PairDataOptions(DataOptions):
    """Which rows are read, and which of them are left out."""

    pair_thumbs: bool = Field(
        default=False,
        description="Rows with a thumb: make pairs where a prompt has both.",
        json_schema_extra=REFUSE,
    )


class LoraOptions(Block):
    """Shape of the trained adapter."""

    rank: Annotated[int, Field(gt=0, le=1024)] = Field(
        default=16, description="Rank of the adapter matrices.", json_schema_extra=REFUSE
    )
    alpha: Positive = Field(
        default=32.0,
        description="Scale of the adapter: it is multiplied by alpha / rank.",
        json_schema_extra=REFUSE,
    )
    dropout: Share = Field(
        default=0.0, description="Dropout before the adapter; only sft allows it.", json_schema_extra=REFUSE
    )
    targets: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | Auto = Field(
        default=PROJECTIONS,
        description="Modules that get an adapter; auto: every linear layer of the blocks.",
        json_schema_extra=REFUSE,
    )


class LossOptions(Block):
    """Preference loss; `lite-align losses` lists the names with formulas and own options."""

    name: str = Field(
        default="sigmoid", min_length=1, description="Name of the loss.", json_schema_extra=REFUSE
    )
    beta: Positive | Auto = Field(
        default="auto",
        description="Pull towards the reference; auto: 0.1, more below 1 B parameters.",
        json_schema_extra=REFUSE,
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="Share of labels assumed to be swapped.", json_schema_extra=REFUSE
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.2,
        description="Weight of the chosen answer's log-loss per token, added to the loss.",
        json_schema_extra=REFUSE,
    )
    length_normalized: bool = Field(
        default=False, description="Divide every log-prob by the answer's tokens.", json_schema_extra=REFUSE
    )
    options: dict[str, float] = Field(
        default={}, description="Further options of the named loss: {margin: 0.5}.", json_schema_extra=REFUSE
    )


class RewardLossOptions(Block):
    """Bradley-Terry loss of a reward model: -log sigmoid(difference of the scores)."""

    margin: bool = Field(
        default=False,
        description="Ask for a difference of at least the rows' margin (difference of their ratings).",
        json_schema_extra=REFUSE,
    )
    center_rewards_coefficient: Annotated[float, Field(ge=0)] = Field(
        default=0.01,
        description="Weight of (score of chosen + score of rejected) squared: scores stay around 0.",
        json_schema_extra=REFUSE,
    )
    judge_suffix: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="User turn after the answer, before the score is read; null: the score of the answer's end.",
        json_schema_extra=REFUSE,
    )


class SFTLossOptions(Block):
    """Log-loss of supervised fine-tuning: the mean over all trained tokens of an optimiser step."""

    train_on: TrainOn = Field(
        default="all_turns",
        description="Trained: every answer, the last one, or all tokens.",
        json_schema_extra=REFUSE,
    )


class TrainOptions(Block):
    """Optimiser, length of the run, and how often it is looked at and saved."""

    learning_rate: Positive | Auto = Field(
        default="auto",
        description="Peak learning rate; auto: by stage and model size.",
        json_schema_extra=ASK,
    )
    epochs: Positive | Auto = Field(
        default="auto",
        description="Passes over the data; auto: 1, or 2 below 2,000 rows.",
        json_schema_extra=ASK,
    )
    max_steps: PositiveInteger | None = Field(
        default=None,
        description="Stop after so many optimiser steps; null: epochs decide.",
        json_schema_extra=ASK,
    )
    batch_size: PositiveInteger = Field(
        default=16, description="Examples (pairs, rows) an optimiser step.", json_schema_extra=REFUSE
    )
    tokens_per_microbatch: PositiveInteger | Auto = Field(
        default="auto",
        description="Tokens a forward pass; decides memory and speed only.",
        json_schema_extra=ASK,
    )
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="Share of the steps in which the learning rate rises.", json_schema_extra=ASK
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Learning rate after the warmup.", json_schema_extra=ASK
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="AdamW weight decay.", json_schema_extra=ASK
    )
    adam_beta1: Share = Field(
        default=0.9, description="AdamW decay of the mean gradient.", json_schema_extra=ASK
    )
    adam_beta2: Share = Field(
        default=0.999, description="AdamW decay of the squared gradient.", json_schema_extra=ASK
    )
    adam_epsilon: Positive = Field(default=1e-8, description="AdamW epsilon.", json_schema_extra=ASK)
    max_grad_norm: Positive = Field(
        default=1.0, description="Gradient clipping, global norm.", json_schema_extra=ASK
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=42,
        description="Order of the rows, adapter start and held-out split.",
        json_schema_extra=REFUSE,
    )
    save_steps: PositiveInteger | Auto = Field(
        default="auto",
        description="Steps between checkpoints; auto: about ten a run.",
        json_schema_extra=FREE,
    )
    eval_steps: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto",
        description="Steps between evaluations; auto: about five a run, 0: ends only.",
        json_schema_extra=FREE,
    )
    log_steps: PositiveInteger = Field(
        default=1, description="Steps between logged metrics.", json_schema_extra=FREE
    )
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(
        default=2, description="Newest checkpoints to keep.", json_schema_extra=FREE
    )


class SpeedOptions(Block):
    """Shortcuts that change time and memory and no result; switched off, each takes the plain path."""

    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compile the decoder blocks; auto: on a GPU, if the run is long enough to pay for it.",
        json_schema_extra=ASK,
    )
    share_prompts: bool = Field(
        default=True,
        description="Compute a prompt once for all of its answers.",
        json_schema_extra=ASK,
    )
    fused_lora: bool = Field(
        default=True, description="Add the adapter in one fused product.", json_schema_extra=ASK
    )
    frozen_head: bool = Field(
        default=True,
        description="Log-probs and their gradient in one pass over the frozen head.",
        json_schema_extra=ASK,
    )
    unnest_scales: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Unpack the quantised scales of nf4 once, at loading; auto: where they fit.",
        json_schema_extra=REFUSE,
    )
    offload_embeddings: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Keep the input embedding in the memory of the host; auto: on small GPUs.",
        json_schema_extra=FREE,
    )
    fused_optimizer: bool = Field(
        default=True, description="AdamW as one kernel over one buffer.", json_schema_extra=ASK
    )
    load_while_reading: bool = Field(
        default=True, description="Load the weights while the rows are tokenised.", json_schema_extra=FREE
    )


class SFTRecipe(Block):
    """Supervised fine-tuning on conversations."""

    stage: Literal["sft"] = "sft"
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    lora: LoraOptions = LoraOptions()
    loss: SFTLossOptions = SFTLossOptions()
    train: TrainOptions = TrainOptions()
    speed: SpeedOptions = SpeedOptions()


class WithoutDropout(Block):
    """Blocks shared by the stages that compare a policy with its reference."""

    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    lora: LoraOptions = LoraOptions()

    @field_validator("lora")
    @classmethod
    def _no_dropout(cls, lora: LoraOptions) -> LoraOptions:
        if lora.dropout:
            raise PydanticCustomError(
                "setting",
                "lora.dropout must be 0 outside sft: with random dropout the policy would differ from its "
                "reference before the first step",
                {"key": "lora.dropout"},
            )
        return lora


class DPORecipe(WithoutDropout):
    """Preference training on pairs of a chosen and a rejected answer, or on answers with a thumb."""

    stage: Literal["dpo"] = "dpo"
    data: PairDataOptions = PairDataOptions()  # pyright: ignore[reportIncompatibleVariableOverride]
    loss: LossOptions = LossOptions()
    train: TrainOptions = TrainOptions()
    speed: SpeedOptions = SpeedOptions()


class RewardRecipe(WithoutDropout):
    """Reward model on pairs of a chosen and a rejected answer."""

    stage: Literal["reward"] = "reward"
    data: PairDataOptions = PairDataOptions()  # pyright: ignore[reportIncompatibleVariableOverride]
    loss: RewardLossOptions = RewardLossOptions()
    train: TrainOptions = TrainOptions()
    speed: SpeedOptions = SpeedOptions()


class PPOTrainOptions(TrainOptions):
    """Optimiser, length of the run, and how often it is looked at and saved."""

    batch_size: PositiveInteger = Field(
        default=32, description="Sampled answers an optimiser step.", json_schema_extra=REFUSE
    )
    adam_epsilon: Positive = Field(
        default=1e-5,
        description="AdamW epsilon (1e-5 is usual in PPO: arXiv 2403.17031).",
        json_schema_extra=ASK,
    )


class PPORecipe(WithoutDropout):
    """Reinforcement learning from a reward model, a function or rules."""

    stage: Literal["ppo"] = "ppo"
    ppo: PPOOptions = PPOOptions()
    guards: GuardOptions = GuardOptions()
    train: PPOTrainOptions = PPOTrainOptions()
    speed: SpeedOptions = SpeedOptions()


Recipe = DPORecipe | SFTRecipe | RewardRecipe | PPORecipe
STAGES: dict[str, type[Recipe]] = {
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "dpo": DPORecipe,
    "ppo": PPORecipe,
}
