"""Five steps against TRL's DPOTrainer and KTOTrainer: same model, rows, order and adapter start, so the same losses."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

from lite_align.data import forest
from lite_align.data.types import Rated
from lite_align.model.backbone import Role
from lite_align.recipe import PROJECTIONS
from tests.stages import small

pytestmark = [
    pytest.mark.trl,
    pytest.mark.slow,
    # warnings of TRL and of what it imports are not ours
    pytest.mark.filterwarnings("ignore"),
]

STEPS, BATCH, SEED, RATE = 5, 4, 42, 1e-3
ROWS = small.rows(STEPS * BATCH)
# TRL trains every token after the prompt, we the answer and its end token: here nothing comes after that.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Course(NamedTuple):
    """Losses of all steps, and the gradient of the first before clipping."""

    losses: list[float]
    gradient: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("without-newline") / "model"
    shutil.copytree(tiny_llama, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(copy)
    return copy


def ours(folder: Path, loss: str, beta: float, budget: int) -> tuple[Course, dict[str, torch.Tensor]]:
    """The course of lite-align, and the adapter it started from."""
    model = small.backbone(folder, seed=SEED)
    start = model.adapter_tensors(Role.POLICY)
    recipe = small.recipe(
        {"name": loss, "beta": beta},
        batch_size=BATCH,
        learning_rate=RATE,
        tokens_per_microbatch=budget,
        seed=SEED,
        max_grad_norm=1.0,
    )
    stage = small.stage(model, ROWS, recipe)
    window = stage.window(0)
    for batch in window.batches:
        (stage.loss(batch).total / window.weight).backward()
    gradient = {name: p.grad.clone() for name, p in model.parameters(Role.POLICY) if p.grad is not None}
    engine = small.engine(stage)
    losses = []
    for step in range(STEPS):
        engine.update(stage.window(step), stage.loss)
        losses.append(engine.logged()["loss"])
    return Course(losses, gradient), start


def theirs(folder: Path, out: Path, loss: str, beta: float, start: dict[str, torch.Tensor]) -> Course:
    """The course of TRL from the same adapter."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    from peft import LoraConfig

    losses: list[float] = []
    gradient: dict[str, torch.Tensor] = {}

    class Trainer(trl.DPOTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            value = super().training_step(*args, **kwargs)
            losses.append(float(value))
            if not gradient:
                gradient.update(
                    {plain(n): p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
                )
            return value

    chosen = [ROWS[row] for row in forest.order(len(ROWS), SEED, 0)]
    datasets.disable_progress_bars()
    trainer = Trainer(
        model=str(folder),
        args=trl.DPOConfig(
            output_dir=str(out),
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=BATCH,
            max_length=512,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            max_steps=STEPS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=beta,
            loss_type=[loss],
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list([conversation(row) for row in chosen]),
        peft_config=LoraConfig(
            r=small.SHAPE.rank,
            lora_alpha=small.SHAPE.alpha,
            lora_dropout=0.0,
            target_modules=list(PROJECTIONS),
            task_type="CAUSAL_LM",
        ),
    )
    trained = {plain(n): p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.data = start[name].clone()  # also recasts to fp32 what TRL has cast
    trainer.train()
    return Course(losses, gradient)


def plain(name: str) -> str:
    """A parameter's name as PEFT writes it into a file."""
    return name.replace(".default.", ".").replace(".policy.", ".")


def conversation(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def apart(one: Course, other: Course) -> float:
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("ipo", 1.0)])
def test_five_steps_agree_with_trl(folder, tmp_path, loss, beta):
    whole, start = ours(folder, loss, beta, budget=10_000)
    pieces, _ = ours(folder, loss, beta, budget=64)
    trl = theirs(folder, tmp_path, loss, beta, start)
    assert len(trl.losses) == STEPS
    assert min(abs(a - b) for a, b in zip(trl.losses, trl.losses[1:])) > 1e-4  # they are learning something
    assert apart(whole, trl) <= 1e-5
    assert apart(pieces, trl) <= 1e-5
    assert trl.gradient.keys() == whole.gradient.keys()
    for name, gradient in trl.gradient.items():
        for course in (whole, pieces):
            difference = (course.gradient[name] - gradient).norm()
            assert difference <= 1e-4 * gradient.norm() + 1e-9, name


def test_another_beta_would_be_noticed(folder, tmp_path):
    other, start = ours(folder, "sigmoid", 0.11, budget=10_000)
    assert apart(other, theirs(folder, tmp_path, "sigmoid", 0.1, start)) > 1e-4


# KTO: thumbs instead of pairs. TRL puts the answer of the row before under each prompt, in batches of rows in order.

THUMBS = [
    Rated(
        pair.source,
        prompt=pair.prompt,
        answer=pair.chosen if number % 3 else pair.rejected,
        label=number % 3 > 0,
    )
    for number, pair in enumerate(small.as_pairs(ROWS))
]
WEIGHTS = {"desirable_weight": 1.0, "undesirable_weight": 1.6}


def our_kto(folder: Path, budget: int) -> tuple[list[dict[str, float]], Any]:
    """Metrics of all steps, the adapter at the start, and the order of the rows."""
    model = small.backbone(folder, seed=SEED)
    first = model.adapter_tensors(Role.POLICY)
    recipe = small.recipe(
        {"name": "kto", "beta": 0.5, "options": WEIGHTS},
        batch_size=BATCH,
        learning_rate=KTO_RATE,
        tokens_per_microbatch=budget,
        seed=SEED,
        max_grad_norm=1.0,
    )
    stage = small.thumb_stage(model, THUMBS, recipe, steps=STEPS)
    engine = small.engine(stage)
    found = []
    for step in range(STEPS):
        engine.update(stage.window(step), stage.loss)
        found.append(engine.logged())
    order = [row for step in range(STEPS) for block in stage.windows.step(step)[0] for row in block]
    return found, (first, [THUMBS[row] for row in order])


KTO_RATE = 2e-2  # so that the policy gains on mismatched answers within a few steps


def their_kto(
    folder: Path, out: Path, start: dict[str, torch.Tensor], rated: list[Rated]
) -> dict[str, list[float]]:
    """Losses and reference points of TRL's KTOTrainer from the same adapter on the same rows."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    from peft import LoraConfig

    found: dict[str, list[float]] = {"loss": [], "kl": []}

    class Trainer(trl.KTOTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            value = super().training_step(*args, **kwargs)
            found["loss"].append(float(value))
            found["kl"].append(self._metrics["train"]["kl"][-1])
            return value

    datasets.disable_progress_bars()
    trainer = Trainer(
        model=str(folder),
        args=trl.KTOConfig(
            output_dir=str(out),
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=BATCH,
            max_length=512,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            max_steps=STEPS,
            learning_rate=KTO_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=0.5,
            **WEIGHTS,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row.prompt[0].content}],
                    "completion": [{"role": "assistant", "content": row.answer[0].content}],
                    "label": row.label,
                }
                for row in rated
            ]
        ),
        peft_config=LoraConfig(
            r=small.SHAPE.rank,
            lora_alpha=small.SHAPE.alpha,
            lora_dropout=0.0,
            target_modules=list(PROJECTIONS),
            task_type="CAUSAL_LM",
        ),
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = start[plain(name)].clone()
    trainer.train()
    return found


def test_five_steps_on_thumbs_agree_with_trl(folder, tmp_path):
    whole, (start, rated) = our_kto(folder, 10_000)
    pieces, _ = our_kto(folder, 64)
    trl = their_kto(folder, tmp_path, start, rated)
    assert max(trl["kl"]) > 0.01  # the reference point has left 0
    assert min(abs(a - b) for a, b in zip(trl["loss"], trl["loss"][1:])) > 1e-4
    # z is a mean of sums of some hundred nats in fp32, so it agrees less far than the loss, in which it is times beta.
    for name, difference in (("loss", 1e-5), ("kl", 5e-5)):
        assert [row[name] for row in whole] == pytest.approx(trl[name], abs=difference)
        assert [row[name] for row in pieces] == pytest.approx(trl[name], abs=difference)
