"""What is drawn of a run over its steps, by stage: the lines of each chart, and how to read it."""

from dataclasses import dataclass

# Colours that matplotlib writes and the page replaces; see `curves`.
FIRST, SECOND = "#030303", "#040404"


@dataclass(frozen=True)
class Line:
    """One metric in a picture.

    `held_out` ones are dashed with markers, so that colour is not needed; `noisy` ones get a running mean.
    """

    metric: str
    label: str
    colour: str = FIRST
    held_out: bool = False
    noisy: bool = True


@dataclass(frozen=True)
class Chart:
    """What one picture shows and how to read it; `level` draws a horizontal line (chance, zero).

    `of_thumbs` is how to read it where the run learned from thumbs, if that is another matter.
    """

    title: str
    lines: tuple[Line, ...]
    reading: str
    level: float | None = None
    log: bool = False
    of_thumbs: str = ""


OPTIMISER: tuple[Chart, ...] = (
    Chart(
        "Gradient norm",
        (Line("grad_norm", "before clipping"),),
        "Single peaks are clipped and harmless; a line that climbs asks for a lower learning rate.",
        log=True,
    ),
    Chart(
        "Learning rate",
        (Line("learning_rate", "learning rate", noisy=False),),
        "Warms up, then follows the schedule of the recipe to the end.",
    ),
)
SPEED = Chart(
    "Speed",
    (Line("examples_per_second", "examples per second"),),
    "Steady is right; a sudden fall means that something else took the machine or its memory.",
)
LOSS = Chart(
    "Loss",
    (Line("loss", "training"), Line("eval/loss", "held out", SECOND, True)),
    "Both should fall; held out rising while training falls means that the run memorises its rows.",
)
IMITATION: tuple[Chart, ...] = (
    LOSS,
    Chart(
        "Token accuracy",
        (
            Line("mean_token_accuracy", "training"),
            Line("eval/mean_token_accuracy", "held out", SECOND, True),
        ),
        "Share of trained tokens that no other token beats; training lines far above held-out ones are memory.",
    ),
    *OPTIMISER,
    SPEED,
)
PREFERENCE: tuple[Chart, ...] = (
    LOSS,
    Chart(
        "Accuracy",
        (Line("rewards/accuracies", "training"), Line("eval/rewards/accuracies", "held out", SECOND, True)),
        "Share of pairs whose chosen answer gained more than the rejected one; 0.5 is chance, 1.0 very early is "
        "suspicious.",
        level=0.5,
        of_thumbs="Share of answers with a thumb up that gained more than the reference point, and of those with a "
        "thumb down that gained less; 0.5 is chance, 1.0 very early is suspicious.",
    ),
    Chart(
        "Margin",
        (Line("rewards/margins", "training"), Line("eval/rewards/margins", "held out", SECOND, True)),
        "How much more the chosen answer gained than the rejected one, times beta; it starts at 0 and should "
        "rise and level off.",
        level=0.0,
        of_thumbs="Mean gain of answers with a thumb up less that of answers with a thumb down, times beta; it starts "
        "at 0 and should rise and level off.",
    ),
    Chart(
        "Rewards",
        (
            Line("rewards/chosen", "chosen"),
            Line("rewards/rejected", "rejected", SECOND),
            Line("eval/rewards/chosen", "chosen, held out", FIRST, True),
            Line("eval/rewards/rejected", "rejected, held out", SECOND, True),
        ),
        "Gain of each answer over the reference; good runs part around 0, and a chosen line that sinks means that "
        "good answers become less likely too.",
        level=0.0,
        of_thumbs="Gain of each answer over the reference; good runs part around the reference point times beta, and "
        "a thumb-up line that sinks means that good answers become less likely too.",
    ),
    Chart(
        "Reference point",
        (Line("kl", "training"), Line("eval/kl", "held out", SECOND, True)),
        "How much the policy has gained on answers under prompts that are not theirs, in nats: an estimate of its KL "
        "from the reference, from which gains are measured. Near 0 at first; a steep climb means that the run drifts.",
        level=0.0,
    ),
    Chart(
        "Log-probs of answers",
        (
            Line("logps/chosen", "chosen"),
            Line("logps/rejected", "rejected", SECOND),
            Line("eval/logps/chosen", "chosen, held out", FIRST, True),
            Line("eval/logps/rejected", "rejected, held out", SECOND, True),
        ),
        "Sums over the tokens of an answer, in nats; training lines jump with the length of the answers in a batch, "
        "so trust the held-out ones.",
    ),
    Chart(
        "Answer length",
        (Line("lengths/chosen", "chosen"), Line("lengths/rejected", "rejected", SECOND)),
        "Tokens of the answers in each step; chosen ones longer throughout teach the model to be long.",
    ),
    *OPTIMISER,
    SPEED,
)
REWARD: tuple[Chart, ...] = (
    LOSS,
    Chart(
        "Accuracy",
        (Line("rewards/accuracies", "training"), Line("eval/rewards/accuracies", "held out", SECOND, True)),
        "Share of pairs whose chosen answer scores higher; 0.5 is chance, and labels that disagree set a ceiling "
        "below 1.",
        level=0.5,
    ),
    Chart(
        "Margin",
        (Line("rewards/margins", "training"), Line("eval/rewards/margins", "held out", SECOND, True)),
        "Score of the chosen answer less that of the rejected one: the log-odds of the choice. Training far above "
        "held out is overconfidence.",
        level=0.0,
    ),
    Chart(
        "Scores",
        (
            Line("rewards/chosen", "chosen"),
            Line("rewards/rejected", "rejected", SECOND),
            Line("eval/rewards/chosen", "chosen, held out", FIRST, True),
            Line("eval/rewards/rejected", "rejected, held out", SECOND, True),
        ),
        "Mean scores; only their difference has a meaning, and centering keeps them around 0.",
        level=0.0,
    ),
    *OPTIMISER,
    SPEED,
)
POLICY: tuple[Chart, ...] = (
    Chart(
        "Reward",
        (
            Line("objective/reward", "sampled answers"),
            Line("eval/reward", "held out", SECOND, True),
        ),
        "The score that is optimised, weighted and summed. It should rise; whether quality rises with it is what the "
        "rule score, the pairs and the answers say.",
    ),
    Chart(
        "Rule score",
        (Line("eval/rule_score", "held out", SECOND, True),),
        "The score of the world's rule, which the policy never sees, on held-out prompts. Falling while the reward "
        "rises is reward hacking.",
    ),
    Chart(
        "Preference accuracy",
        (Line("eval/preference_accuracy", "held out", SECOND, True),),
        "Share of held-out pairs whose chosen answer the policy finds likelier, against the reference; 0.5 is chance.",
        level=0.5,
    ),
    Chart(
        "KL to the reference",
        (Line("objective/kl", "sampled answers"), Line("eval/kl", "held out", SECOND, True)),
        "Nats an answer, from 0. It should level off near its target; a steep climb means that the policy leaves what "
        "it was.",
        level=0.0,
    ),
    Chart(
        "Weight of the KL",
        (Line("objective/beta", "beta", noisy=False),),
        "Adapts so that the KL comes to its target; a line that only climbs says that the reward pulls harder.",
    ),
    Chart(
        "Answer length",
        (Line("objective/length", "sampled answers"), Line("eval/length", "held out", SECOND, True)),
        "Tokens. Length that grows with the reward is the commonest hack of all.",
    ),
    Chart(
        "Entropy",
        (Line("objective/entropy", "sampled answers"), Line("eval/entropy", "held out", SECOND, True)),
        "Nats a token. It falls slowly as the policy makes up its mind; near 0 every prompt has one answer left.",
    ),
    Chart(
        "Answers that stop",
        (Line("objective/stop_rate", "sampled answers"), Line("eval/stop_rate", "held out", SECOND, True)),
        "Share that ends with a stop token before max_new_tokens; it should stay near 1.",
    ),
    Chart(
        "Different word pairs",
        (Line("text/distinct_2", "sampled answers"), Line("eval/distinct_2", "held out", SECOND, True)),
        "Share of word pairs that are different, over all answers (distinct-2); a fall means that they become alike.",
    ),
    Chart(
        "Repeated word triples",
        (
            Line("text/repeated_3grams", "sampled answers"),
            Line("eval/repeated_3grams", "held out", SECOND, True),
        ),
        "Share of an answer's word triples that it had before; a rise means that it goes round in circles.",
    ),
    Chart(
        "Clipped tokens",
        (Line("policy/clip_fraction", "policy"), Line("value/clip_fraction", "value", SECOND)),
        "Share of tokens whose update the clip holds back. Above about 0.2 the rounds are too greedy: a lower learning "
        "rate or fewer passes.",
    ),
    Chart(
        "KL of an update",
        (Line("policy/approx_kl", "to the sampled policy"),),
        "Nats a token (k3) between the policy that sampled and the one that learned; at 1.5 times ppo.update_kl the "
        "round ends.",
    ),
    Chart(
        "Explained variance",
        (Line("value/explained_variance", "value head"),),
        "Share of the returns that the value head foresees: 1 is all, 0 as much as their mean, below 0 it does harm.",
        level=0.0,
    ),
    Chart(
        "Refusals",
        (
            Line("eval/refusal/unsafe", "unsafe wishes", FIRST, True),
            Line("eval/refusal/other", "other wishes", SECOND, True),
        ),
        "Share of held-out wishes refused. Unsafe ones should stay high and the others low; both high is a policy that "
        "refuses everything.",
    ),
    Chart(
        "Speed of generation and learning",
        (
            Line("speed/generated_tokens_per_second", "generated"),
            Line("speed/learned_tokens_per_second", "learned", SECOND),
        ),
        "Tokens a second of each half of a round.",
    ),
    *OPTIMISER,
)
CHARTS: dict[str, tuple[Chart, ...]] = {
    "sft": IMITATION,
    "dpo": PREFERENCE,
    "reward": REWARD,
    "ppo": POLICY,
}
"""By stage of the run."""
