"""TRL's side: what all of its trainers have in common here, and DPOTrainer, with the best flags on a CPU.

TRL scores completion tokens alone only where it finds Triton, on CUDA: `_use_triton` is patched to say yes, so that
its own CPU code does the same. As installed it is several times slower on a CPU; that is not the comparison.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.sides import Side, Step, Work, timing
from benchmarks.workload import ALPHA, BATCH, BETA, MAX_LENGTH, RANK, RATE, read_rows


class Flag(NamedTuple):
    """A value of a trainer's configuration, and why it is the best or the same for both."""

    value: Any
    reason: str


FLAGS = {
    "gradient_checkpointing": Flag(False, "nothing is computed twice; the memory is there"),
    "train_sampling_strategy": Flag(
        "sequential", "rows are sorted by length, which leaves the least padding"
    ),
    "per_device_train_batch_size": Flag(BATCH, "a whole optimiser step in one pass; as here"),
    "gradient_accumulation_steps": Flag(1, "a whole optimiser step in one pass"),
    "learning_rate": Flag(RATE, "as here"),
    "lr_scheduler_type": Flag("constant", "as here"),
    "dataloader_num_workers": Flag(0, "no CPU time is spent in a process that is not measured"),
    "save_strategy": Flag("no", "saving is not measured"),
    "report_to": Flag([], "reporting is not measured"),
    "logging_steps": Flag(1, "the metrics of every step, as here"),
    "disable_tqdm": Flag(True, "no progress bar, as here"),
    "use_cpu": Flag(True, "the comparison on CPUs"),
    "seed": Flag(42, "as here"),
}
"""Of every trainer."""

DPO_FLAGS = FLAGS | {
    "precompute_ref_log_probs": Flag(True, "the reference is computed once, not in every step"),
    "max_length": Flag(MAX_LENGTH, "as here; no row is cut"),
    "beta": Flag(BETA, "as here"),
}


@dataclass(frozen=True)
class Variant:
    """A way to hold and to multiply the frozen weights.

    Args:
        base: fp32, bf16 or nf4.
        autocast: whether products run in bf16 by torch's autocast.
        reason: why it may be the fastest.
    """

    base: str
    autocast: bool
    reason: str

    @property
    def name(self) -> str:
        """As it stands in results."""
        return f"TRL, {self.base} base{', bf16 autocast' if self.autocast else ''}"


VARIANTS = {
    "bf16": (
        Variant("bf16", True, "half the memory traffic of fp32 weights, no cast of them"),
        Variant("fp32", True, "TRL's usual way: fp32 weights, products in bf16"),
    ),
    "nf4": (Variant("nf4", True, "bitsandbytes computes in bf16"),),
}
"""By the precision of our side; the fastest of them is the opponent."""


def sides(precision: str) -> dict[str, Side]:
    """All variants for a precision, by name."""
    return {variant.name: side(variant) for variant in VARIANTS[precision]}


def side(variant: Variant) -> Side:
    """One variant."""
    return Side("benchmarks.opponent", asdict(variant))


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One run of DPOTrainer: its pass over the reference and its steps, timed from inside."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    variant = Variant(**settings)
    rows = datasets.Dataset.from_list(sorted_rows(work))

    def trainer(folder: str, clock: Any) -> Any:
        config = DPOConfig(**configuration(DPO_FLAGS, variant, work, folder))
        return DPOTrainer(
            args=config, train_dataset=rows, callbacks=[clock], **model_and_adapter(variant, work)
        )

    with reference_clock() as reference:
        steps, memory = train(trainer)
    return {**timing(sum(reference), steps, work), "memory": memory}


def configuration(flags: dict[str, Flag], variant: Variant, work: Work, folder: str) -> dict[str, Any]:
    """Arguments of a trainer's configuration."""
    return {
        "output_dir": folder,
        "num_train_epochs": work.epochs,
        "bf16": variant.autocast,
        "model_init_kwargs": {"dtype": "float32" if variant.base == "fp32" else "bfloat16"},
        **{name: flag.value for name, flag in flags.items()},
    }


def model_and_adapter(variant: Variant, work: Work, task: str = "CAUSAL_LM") -> dict[str, Any]:
    """Arguments of a trainer: the model, as it is held, and the shape of its adapter."""
    from peft import LoraConfig

    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type=task)
    quantized = quantization() if variant.base == "nf4" else None
    return {"model": work.model, "peft_config": lora, "quantization_config": quantized}


def train(make: Callable[[str, Any], Any]) -> tuple[list[Step], int]:
    """Build a trainer, given a folder and a callback, and train: its steps, and its memory over that before it."""
    import datasets
    import transformers
    import trl.trainer.utils
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.started)

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    trl.trainer.utils._use_triton = lambda device: True
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        before = machine.resident_bytes()
        machine.reset_peak()
        trainer = make(folder, clock)
        tokens = counted_tokens(trainer)
        trainer.train()
        peak = machine.peak_bytes() - before
    return [Step(*step) for step in zip(clock.seconds, tokens)], peak


def sorted_rows(work: Work) -> list[dict[str, Any]]:
    """The rows, the longest first: rows of like length stand in one batch."""
    return longest_first(
        work,
        read_rows(Path(work.rows)),
        lambda row: [row["prompt"] + row[side] for side in ("chosen", "rejected")],
    )


def longest_first(
    work: Work, rows: list[dict[str, Any]], conversations: Callable[[dict[str, Any]], list[Any]]
) -> list[dict[str, Any]]:
    """Rows by the tokens of their longest conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work.model)

    def length(row: dict[str, Any]) -> int:
        return max(
            len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
            for messages in conversations(row)
        )

    return sorted(rows, key=length, reverse=True)


def quantization() -> Any:
    """NF4 with double quantisation and products in bf16, as our side loads it."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


@contextmanager
def reference_clock() -> Iterator[list[float]]:
    """CPU seconds of every pass over the reference, which DPOTrainer makes while it is built."""
    from trl import DPOTrainer

    seconds: list[float] = []
    own = DPOTrainer._precompute_ref_logps

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = own(self, *args, **kwargs)
        seconds.append(time.process_time() - started)
        return result

    DPOTrainer._precompute_ref_logps = timed
    try:
        yield seconds
    finally:
        DPOTrainer._precompute_ref_logps = own


def counted_tokens(trainer: Any) -> list[int]:
    """Tokens of every batch that is made from now on, padding included."""
    tokens: list[int] = []
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        batch = collate(examples)
        tokens.append(batch["input_ids"].numel())
        return batch

    trainer.data_collator = counted
    return tokens
