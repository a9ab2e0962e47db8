"""TRL's RewardTrainer with its best flags on a CPU, each with its reason; what trainers share is in `opponent`.

It pads all answers of a step to the longest one, and has no way without padding; rows of like length stand together.
The adapter has the task type SEQ_CLS: without it the head is neither trained nor saved, and nothing says so.
"""

from dataclasses import asdict
from typing import Any

from benchmarks import opponent
from benchmarks.opponent import FLAGS, VARIANTS, Flag, Variant
from benchmarks.sides import Side, Work, timing
from benchmarks.workload import MAX_LENGTH

REWARD_FLAGS = FLAGS | {
    "max_length": Flag(MAX_LENGTH, "as here; no row is left out"),
    "center_rewards_coefficient": Flag(0.01, "as here"),
    "pad_to_multiple_of": Flag(None, "no more padding than is needed"),
}


def sides(precision: str) -> dict[str, Side]:
    """All variants for a precision, by name."""
    return {
        variant.name: Side("benchmarks.opponent_reward", asdict(variant)) for variant in VARIANTS[precision]
    }


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One run of RewardTrainer, its steps timed from inside."""
    import datasets
    from trl import RewardConfig, RewardTrainer

    variant = Variant(**settings)
    rows = datasets.Dataset.from_list(opponent.sorted_rows(work))
    trained: list[int] = []

    def trainer(folder: str, clock: Any) -> Any:
        config = RewardConfig(**opponent.configuration(REWARD_FLAGS, variant, work, folder))
        made = RewardTrainer(
            args=config,
            train_dataset=rows,
            callbacks=[clock],
            **opponent.model_and_adapter(variant, work, task="SEQ_CLS"),
        )
        trained.extend([len(made.train_dataset), head_weights(made.model)])
        return made

    steps, memory = opponent.train(trainer)
    pairs, head = trained
    assert pairs == work.examples, "both sides must train on the same pairs"
    assert head, "the head must be trained"
    return {**timing(0.0, steps, work), "memory": memory}


def head_weights(model: Any) -> int:
    """Trained weights of the scalar head."""
    named = model.named_parameters()
    return sum(weight.numel() for name, weight in named if "score" in name and weight.requires_grad)
