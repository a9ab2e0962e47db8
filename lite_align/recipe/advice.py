"""Values that are allowed but seldom meant (rule LA702), and the defaults that depend on a model's size."""

from lite_align.recipe.schema import DPORecipe, PPORecipe, Recipe

_SIZES: dict[str, tuple[tuple[float, dict[str, float]], ...]] = {
    "dpo": (
        (6e9, {"train.learning_rate": 5e-6, "loss.beta": 0.1}),
        (1e9, {"train.learning_rate": 1e-5, "loss.beta": 0.1}),
        (1e8, {"train.learning_rate": 2e-5, "loss.beta": 0.3}),
        (0, {"train.learning_rate": 1e-3, "loss.beta": 1.0}),
    ),
    "sft": ((1e8, {"train.learning_rate": 2e-4}), (0, {"train.learning_rate": 2e-3})),
    "reward": (
        (1e9, {"train.learning_rate": 5e-5}),
        (1e8, {"train.learning_rate": 1e-4}),
        (0, {"train.learning_rate": 3e-3}),
    ),
    "ppo": ((1e8, {"train.learning_rate": 1e-5}), (0, {"train.learning_rate": 1e-3})),
}


def size_defaults(stage: str, parameters: int) -> dict[str, float]:
    """Settings of a stage that depend on the size of its base, by dotted key.

    Source: values that published QLoRA recipes agree on for 1 B and above; below, measured on small models,
    where a stronger pull keeps the text whole.
    """
    return next(values for size, values in _SIZES[stage] if parameters >= size)


def unusual(recipe: Recipe, parameters: int | None = None) -> list[str]:
    """One line for each value outside the range that usually works; `parameters` is the size of the base."""
    lines = [*_unusual_training(recipe), *_unusual_lora(recipe)]
    if isinstance(recipe, DPORecipe):
        lines += _unusual_dpo(recipe, parameters)
    if isinstance(recipe, PPORecipe):
        lines += _unusual_ppo(recipe)
    return [f"LA702 {line}" for line in lines]


def _unusual_training(recipe: Recipe) -> list[str]:
    train = recipe.train
    lines: list[str] = []
    if train.batch_size < 8:
        lines.append(f"train.batch_size {train.batch_size} is small: steps will be noisy; 16 to 32 is usual")
    if train.batch_size > 128:
        lines.append(f"train.batch_size {train.batch_size} is large for an adapter; 16 to 32 is usual")
    sampled = isinstance(recipe, PPORecipe)  # the answers to a prompt are new each time
    if train.epochs != "auto" and train.epochs > 3 and not sampled:
        lines.append(f"train.epochs {train.epochs:g} is many: expect memorised rows; 1 to 3 is usual")
    if train.warmup > 0.5:
        lines.append(f"train.warmup {train.warmup:g} keeps the learning rate low for most of the run")
    return lines


def _unusual_lora(recipe: Recipe) -> list[str]:
    scale = recipe.lora.alpha / recipe.lora.rank
    if 0.25 <= scale <= 4:
        return []
    return [f"lora.alpha / lora.rank is {scale:g}; 1 to 2 is usual, as it multiplies the learning rate"]


def _unusual_dpo(recipe: DPORecipe, parameters: int | None) -> list[str]:
    lines: list[str] = []
    rate, beta = recipe.train.learning_rate, recipe.loss.beta
    if rate != "auto":
        usual = 1e-5 if parameters is None else size_defaults("dpo", parameters)["train.learning_rate"]
        size = "" if parameters is None else f" for {parameters / 1e9:.2g} B parameters"
        if rate > 8 * usual and (parameters is not None or rate >= 1e-4):
            hint = " (it is a value for sft)" if 1e-4 <= rate <= 5e-4 else ""
            lines.append(
                f"train.learning_rate {rate:g} is high for dpo{hint}; about {usual:g} is usual{size}"
            )
        if rate < usual / 20:
            lines.append(
                f"train.learning_rate {rate:g} hardly moves an adapter; about {usual:g} is usual{size}"
            )
    if beta != "auto" and recipe.loss.name == "sigmoid" and not 0.01 <= beta <= 2:
        lines.append(
            f"loss.beta {beta:g} is unusual: 0.1 to 0.5; lower lets the policy drift, higher holds it"
        )
    return lines


def _unusual_ppo(recipe: PPORecipe) -> list[str]:
    options = recipe.ppo
    lines: list[str] = []
    if options.top_p < 1 or options.top_k:
        lines.append(
            "ppo.top_p and ppo.top_k below all tokens sample from another policy than the one that learns: the KL and "
            "the ratios are wrong by that much"
        )
    if options.kl == 0 and not recipe.guards.enabled:
        lines.append("ppo.kl 0 without guards: nothing keeps the policy from hacking the reward")
    if options.passes > 4:
        lines.append(f"ppo.passes {options.passes} is many: most tokens will be clipped; 1 to 4 is usual")
    return lines


def memory_levers(recipe: Recipe) -> list[str]:
    """What would need less memory, the largest saving first: three settings that are not at their least yet."""
    model, data = recipe.model, recipe.data
    length = "" if data.max_length == "auto" else f" (now {data.max_length:,})"
    levers = [
        ("model.gradient_checkpointing=on", model.gradient_checkpointing != "on"),
        (f"a lower data.max_length{length}", True),
        ("model.quantization=nf4", model.quantization != "nf4"),
        (f"a lower lora.rank (now {recipe.lora.rank})", recipe.lora.rank > 8),
        ("a smaller model", True),
    ]
    return [text for text, helps in levers if helps][:3]
