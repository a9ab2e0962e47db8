"""Recipe blocks of reinforcement learning: rollouts and the clipped update, and guards against reward hacking."""

from typing import Annotated, Literal

from pydantic import Field

from lite_align.recipe.block import ASK, FREE, REFUSE, Auto, Block, Positive, PositiveInteger

Action = Literal["off", "warn", "raise_kl", "lower_rate", "stop", "roll_back"]
"""What a guard does: nothing, tell, raise the weight of the KL, halve the learning rate, end the run, or end it at the
last state that was good."""


class PPOOptions(Block):
    """Rollouts, their rewards, and the clipped update (PPO, arXiv 1707.06347; RLOO, 2402.14740; GRPO, 2402.03300)."""

    reward: str | None = Field(
        default=None, description="Run folder of the reward model (--reward).", json_schema_extra=REFUSE
    )
    reward_weight: float = Field(
        default=1.0,
        description="Weight of its score, which counts in standard deviations.",
        json_schema_extra=REFUSE,
    )
    reward_clip: Positive = Field(
        default=5.0,
        description="Standard deviations at which its score is clipped.",
        json_schema_extra=REFUSE,
    )
    reward_fn: str | None = Field(
        default=None,
        description="Reward function of yours, as FILE.py:NAME (--reward-fn).",
        json_schema_extra=REFUSE,
    )
    reward_fn_weight: float = Field(default=1.0, description="Weight of its value.", json_schema_extra=REFUSE)
    reward_fn_timeout: Positive = Field(
        default=10.0, description="Seconds that it may take for an answer.", json_schema_extra=FREE
    )
    rules: dict[str, float] = Field(
        default={}, description="Weights of built-in rules: {repetition: 0.5}.", json_schema_extra=REFUSE
    )
    force: bool = Field(
        default=False,
        description="Start although the reward model is weak or has learned length.",
        json_schema_extra=FREE,
    )
    advantage: Literal["gae", "rloo", "grpo"] = Field(
        default="gae",
        description="Advantages from a value head, or from the other answers to a prompt.",
        json_schema_extra=REFUSE,
    )
    rollouts: PositiveInteger = Field(
        default=64, description="Answers sampled a round.", json_schema_extra=REFUSE
    )
    samples: PositiveInteger | Auto = Field(
        default="auto",
        description="Answers to each prompt; auto: 1 for gae, else 4.",
        json_schema_extra=REFUSE,
    )
    max_new_tokens: PositiveInteger = Field(
        default=256, description="Longest sampled answer, in tokens.", json_schema_extra=REFUSE
    )
    temperature: Positive = Field(
        default=1.0,
        description="Sampling temperature, also used for every log-prob.",
        json_schema_extra=REFUSE,
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Sample from the likeliest tokens with this probability together; 1: from all.",
        json_schema_extra=REFUSE,
    )
    top_k: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Sample from so many likeliest tokens; 0: from all.", json_schema_extra=REFUSE
    )
    missing_stop: float = Field(
        default=-1.0, description="Score of an answer without a stop token.", json_schema_extra=REFUSE
    )
    passes: PositiveInteger = Field(
        default=2, description="Passes over each batch of rollouts.", json_schema_extra=REFUSE
    )
    clip: Positive = Field(default=0.2, description="Clipping of ratio and value.", json_schema_extra=REFUSE)
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.95, description="Lambda of the advantage estimate (gamma is 1).", json_schema_extra=REFUSE
    )
    update_kl: Positive | None = Field(
        default=0.05,
        description="KL a token to the sampled policy; 1.5 times of it end a round; null: never.",
        json_schema_extra=REFUSE,
    )
    kl: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="Weight of the KL to the reference at the start.", json_schema_extra=REFUSE
    )
    target_kl: Positive | None = Field(
        default=6.0,
        description="KL an answer, in nats, that kl adapts to; null: kl stays.",
        json_schema_extra=REFUSE,
    )
    kl_horizon: PositiveInteger | Auto = Field(
        default="auto", description="Answers in which kl adapts; auto: 25 rounds.", json_schema_extra=REFUSE
    )
    kl_in: Literal["auto", "reward", "loss"] = Field(
        default="auto",
        description="Where the KL counts; auto: in the loss (k3) for grpo, else in the reward (k1).",
        json_schema_extra=REFUSE,
    )
    value: Literal["auto", "reward", "policy"] = Field(
        default="auto",
        description="States that the value head reads; auto: the reward model's, if there is one.",
        json_schema_extra=REFUSE,
    )
    value_weight: Positive = Field(
        default=0.1, description="Weight of the value loss.", json_schema_extra=REFUSE
    )
    value_learning_rate: Positive = Field(
        default=2e-3, description="Peak learning rate of the value head.", json_schema_extra=ASK
    )
    pairs: str | None = Field(
        default=None,
        description="File of held-out pairs: how often the policy prefers the chosen answer.",
        json_schema_extra=REFUSE,
    )
    rule_score: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Score held-out answers by the rule of the built-in world; auto: for tiny.",
        json_schema_extra=REFUSE,
    )


class GuardOptions(Block):
    """What is done where held-out figures, against those of the start, say that the reward is being hacked."""

    enabled: bool = Field(
        default=True, description="Look at all of them at every evaluation.", json_schema_extra=ASK
    )
    patience: PositiveInteger = Field(
        default=2,
        description="Evaluations in a row before hacking, kl, category, refusal and value act.",
        json_schema_extra=ASK,
    )
    hacking: Action = Field(
        default="roll_back",
        description="The reward rises while quality falls.",
        json_schema_extra=ASK,
    )
    length: Action = Field(
        default="roll_back", description="Answers grew beyond length_limit.", json_schema_extra=ASK
    )
    length_warning: Positive = Field(
        default=1.4, description="Mean length, in lengths of the start, that is told.", json_schema_extra=ASK
    )
    length_limit: Positive = Field(
        default=1.8,
        description="Mean length, in lengths of the start, at which the guard acts.",
        json_schema_extra=ASK,
    )
    kl: Action = Field(default="raise_kl", description="KL above kl_limit.", json_schema_extra=ASK)
    kl_limit: Positive = Field(default=2.0, description="Largest KL, in target_kl.", json_schema_extra=ASK)
    category: Action = Field(
        default="roll_back",
        description="A category lost more than category_limit.",
        json_schema_extra=ASK,
    )
    category_limit: Positive = Field(
        default=0.1, description="Largest loss of rule score in a category.", json_schema_extra=ASK
    )
    refusal: Action = Field(
        default="roll_back",
        description="Unsafe wishes are refused less, or others more.",
        json_schema_extra=ASK,
    )
    refusal_limit: Positive = Field(
        default=0.05, description="Largest fall of the share of unsafe wishes refused.", json_schema_extra=ASK
    )
    over_refusal_limit: Positive = Field(
        default=0.1, description="Largest rise of the share of other wishes refused.", json_schema_extra=ASK
    )
    entropy: Action = Field(
        default="raise_kl", description="Entropy fell below entropy_limit.", json_schema_extra=ASK
    )
    entropy_limit: Positive = Field(
        default=0.5, description="Least entropy, as a share of the start.", json_schema_extra=ASK
    )
    repetition: Action = Field(
        default="roll_back", description="Answers repeat each other or themselves.", json_schema_extra=ASK
    )
    distinct_limit: Positive = Field(
        default=0.6,
        description="Least share of different word pairs, as a share of the start.",
        json_schema_extra=ASK,
    )
    repeat_limit: Positive = Field(
        default=2.0,
        description="Largest share of repeated word triples, in shares of the start.",
        json_schema_extra=ASK,
    )
    stop_rate: Action = Field(
        default="warn",
        description="Fewer answers than stop_limit end with a stop token.",
        json_schema_extra=ASK,
    )
    stop_limit: Positive = Field(
        default=0.95, description="Least share of answers that stop.", json_schema_extra=ASK
    )
    value: Action = Field(
        default="lower_rate",
        description="The value head explains nothing after ten rounds.",
        json_schema_extra=ASK,
    )
