"""TRL and Unsloth at their best flags, on the same weights, rows, LoRA shape and batch.

Token ids go in as they are (neither text nor truncation), prompts and answers of similar length share a batch, and
hashing the weights for TRL's cache is left out: all of that is in their favour. Nothing heavy is imported at the
top: Unsloth rewrites its libraries and must come first.
"""

import importlib.util
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import ALPHA, BETA, RANK, RATE, Job, Pair

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Variant:
    """Flags of an opponent: those of its configuration, the pairs of a micro-batch, and why it is tried."""

    why: str
    flags: dict[str, Any] = field(default_factory=dict)
    pairs: int = 8


PRECOMPUTED = {"precompute_ref_log_probs": True}
PLAIN = {**PRECOMPUTED, "gradient_checkpointing": False}
TRL = {
    "precomputed reference": Variant("the reference is computed once", PRECOMPUTED),
    "no checkpointing": Variant("and nothing is recomputed, with half a batch at a time", PLAIN, 4),
    "no checkpointing, 2 pairs": Variant("the same where memory is short", PLAIN, 2),
    "as installed": Variant("default flags"),
    "compiled": Variant("torch_compile", {**PRECOMPUTED, "torch_compile": True}),
}
UNSLOTH = {
    "precomputed reference": Variant("with Unsloth's own checkpointing", PRECOMPUTED),
    "4 pairs": Variant("with less padding in a micro-batch", PRECOMPUTED, 4),
    "no checkpointing": Variant("nothing is recomputed", PLAIN, 4),
    "as documented": Variant("the flags of its DPO notebooks", {}, 2),
}


def grouped(pairs: Sequence[Pair], batch: int) -> list[Pair]:
    """Batches of similar length, in random order: little padding, and no trend over the steps."""
    by_length = sorted(pairs, key=lambda pair: sum(pair.lengths))
    batches = [by_length[i : i + batch] for i in range(0, len(by_length), batch)]
    random.Random(0).shuffle(batches)
    return [pair for group in batches for pair in group]


def train(job: Job, variant: Variant, model: Any, processing: Any, lora: Any) -> dict[str, Any]:
    """Time DPOTrainer; a step is what lies between the ends of two steps, as lite-align's is."""
    import datasets
    import transformers
    import trl.trainer.dpo_trainer
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from benchmarks.gpu import device, models

    transformers.logging.set_verbosity_error()
    trl.trainer.dpo_trainer.hash_module = lambda module: "random weights"
    ends: list[float] = []
    passes: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            device.synchronize()
            ends.append(time.perf_counter())

    class Timed(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def compute_ref_log_probs(self, *args: Any, **kwargs: Any) -> Any:
            device.synchronize()
            started = time.perf_counter()
            found = super().compute_ref_log_probs(*args, **kwargs)
            device.synchronize()
            passes.append(time.perf_counter() - started)
            return found

    warm, measured = (grouped(pairs, job.batch) for pairs in job.rows())
    columns = {
        f"{name}_ids": [getattr(pair, name) for pair in warm + measured]
        for name in ("prompt", "chosen", "rejected")
    }
    device.reset_peak()
    micro = min(variant.pairs, job.batch)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            use_cpu=device.the_device().type == "cpu",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=job.batch // micro,
            max_length=max(pair.longest for pair in warm + measured),
            max_steps=job.warmup + job.steps,
            train_sampling_strategy="sequential",
            precompute_ref_batch_size=job.batch,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            beta=BETA,
            bf16=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=42,
            **variant.flags,
        )
        trainer = Timed(
            model=model,
            args=config,
            train_dataset=datasets.Dataset.from_dict(columns),
            processing_class=processing,
            callbacks=[Ends()],
            **({"peft_config": lora} if lora is not None else {}),
        )
        widths: list[int] = []
        collate = trainer.data_collator

        def counted(examples: list[Any]) -> Any:
            made = collate(examples)
            widths.append(made["input_ids"].numel())
            return made

        trainer.data_collator = counted
        trainer.train()
    edges = ends[job.warmup - 1 :]
    return {
        # The reference passes of the warm-up rows come first, one a batch.
        "reference_seconds": sum(passes[job.warmup :]),
        "steps": [after - before for before, after in zip(edges, edges[1:])],
        "pairs": len(measured),
        "tokens_per_pair": sum(widths) / (len(widths) * micro),
        "loss": next(row["loss"] for row in reversed(trainer.state.log_history) if "loss" in row),
        "floor": models.floor(job),
        "settings": {"variant": job.variant, "pairs a micro-batch": micro, **variant.flags},
        "versions": device.versions(),
        **device.peak(),
    }


def trl(job: Job) -> dict[str, Any]:
    """TRL's DPOTrainer on random NF4 weights; attention is torch's own (SDPA)."""
    from peft import LoraConfig

    from benchmarks.gpu import device, lite, models

    config = models.configuration(job.model, small=job.small, layers=job.layers)
    model = models.random_nf4(config, device.the_device(), "sdpa")
    lora = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    return train(job, TRL[job.variant], model, lite.tokenizer(), lora)


def checkpoint(job: Job) -> dict[str, Any]:
    """Write random NF4 weights to a folder: Unsloth loads nothing else."""
    from benchmarks.gpu import device, lite, models

    config = models.configuration(job.model, small=job.small, layers=job.layers)
    model = models.random_nf4(config, device.the_device(), "sdpa")
    folder = Path(job.folder)
    models.save(model, lite.tokenizer(), folder)
    return {"bytes": sum(file.stat().st_size for file in folder.iterdir())}


def unsloth(job: Job) -> dict[str, Any]:
    """Unsloth's DPO: its patched DPOTrainer on a checkpoint folder."""
    import unsloth  # noqa: I001  (before trl and transformers, whose classes it replaces)
    import torch

    longest = max(pair.longest for pairs in job.rows() for pair in pairs)
    variant = UNSLOTH[job.variant]
    unsloth.PatchDPOTrainer()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=job.folder,
        max_seq_length=longest,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        local_files_only=True,
        use_exact_model_name=True,
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing="unsloth" if variant.flags.get("gradient_checkpointing", True) else False,
    )
    found = train(job, variant, model, tokenizer, None)
    extra = {name: importlib.util.find_spec(name) is not None for name in ("xformers", "flash_attn")}
    return found | {"settings": found["settings"] | extra}
