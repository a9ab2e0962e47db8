"""lite-align against TRL on the same DPO work, in one run: CPU seconds per pair and peak memory.

`python -m benchmarks.dpo` makes the model and the rows, then runs both sides in turn, each in its own process, and
prints medians, ratios and counters. Same rows, weights, LoRA shape, batch size, epochs, threads and precision. The
reference pass is counted on both sides; loading, tokenisation and saving on neither.

TRL gets its best flags: precomputed reference, no checkpointing, rows sorted by length, and its completion-only
head, which it switches on for CUDA alone: `_use_triton` is patched to return True, so that its CPU fallback also
scores completion tokens only. As installed it is several times slower on a CPU; that is not the comparison.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, workload
from lite_align.model.budget import CPU_TOKENS

BATCH, RANK, ALPHA, BETA, RATE = 8, 16, 32, 0.1, 5e-4
PRECISIONS = {  # name: (lite-align, variants of TRL; the faster one is the opponent)
    "bf16": (("none", "bfloat16"), (("bf16", True), ("fp32", True))),
    "fp32": (("none", "float32"), (("fp32", False),)),
    "nf4": (("nf4", "bfloat16"), (("nf4", True),)),
}


def run_lite(args: argparse.Namespace) -> dict[str, Any]:
    """One run of lite-align: reference pass and steps, with the metrics that a run logs."""
    import torch

    torch.set_num_threads(args.threads)
    from benchmarks import counters
    from benchmarks.lite import build

    before = machine.resident_bytes()
    machine.reset_peak()
    session = build(args)
    started = time.process_time()
    stage, engine = session.prepare()
    reference = time.process_time() - started
    steps = []
    for step in range(engine.total_steps):
        started = time.process_time()
        engine.update(stage.window(step), stage.loss)
        engine.logged()
        steps.append(time.process_time() - started)
    peak = machine.peak_bytes() - before
    return {
        **timing(reference, steps, args),
        "memory": peak,
        **(counters.measure(stage, engine) if args.counters else {}),
    }


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """One run of TRL's DPOTrainer with its best flags."""
    import torch

    torch.set_num_threads(args.threads)
    import datasets
    import transformers
    import trl.trainer.utils
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    trl.trainer.utils._use_triton = lambda device: True
    base, autocast = args.trl_base, args.trl_autocast
    rows = read_rows(args.rows)
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def length(row: dict[str, Any]) -> int:
        answers = [
            tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True, return_dict=False)
            for side in ("chosen", "rejected")
        ]
        return max(map(len, answers))

    rows.sort(key=length, reverse=True)

    class Timer(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps.append(time.process_time() - self.started)

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    reference = {"cpu": 0.0}
    precompute = DPOTrainer._precompute_ref_logps

    def timed(self: Any, *a: Any, **k: Any) -> Any:
        started = time.process_time()
        result = precompute(self, *a, **k)
        reference["cpu"] += time.process_time() - started
        return result

    DPOTrainer._precompute_ref_logps = timed
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=BATCH,
            max_length=1024,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            num_train_epochs=args.epochs,
            learning_rate=RATE,
            beta=BETA,
            bf16=autocast,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            lr_scheduler_type="constant",
            disable_tqdm=True,
            dataloader_num_workers=0,
            seed=42,
            model_init_kwargs={"dtype": "float32" if base == "fp32" else "bfloat16"},
        )
        before = machine.resident_bytes()
        machine.reset_peak()
        timer = Timer()
        trainer = DPOTrainer(
            model=args.model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            quantization_config=quantization if base == "nf4" else None,
            callbacks=[timer],
        )
        tokens: list[tuple[int, int]] = []
        collate = trainer.data_collator

        def counted(examples: list[Any]) -> Any:
            batch = collate(examples)
            tokens.append((batch["input_ids"].numel(), len(examples)))
            return batch

        trainer.data_collator = counted
        trainer.train()
        peak = machine.peak_bytes() - before
    seen = tokens[: len(timer.steps)]
    per_pair = sum(t for t, _ in seen) / sum(n for _, n in seen)
    return {**timing(reference["cpu"], timer.steps, args), "memory": peak, "tokens_per_pair": per_pair}


def timing(reference: float, steps: list[float], args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds per pair and epoch: the reference pass, and the steps without the first (warm-up) one."""
    steady = sum(steps[1:]) / (len(steps) - 1) / BATCH
    return {
        "step_seconds_per_pair": steady,
        "reference_seconds_per_pair": reference / args.pairs,
        "seconds_per_pair": steady + reference / args.pairs / args.epochs,
    }


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def child(side: str, args: argparse.Namespace, **extra: Any) -> dict[str, Any]:
    """Run one side in a fresh process with one cache of its own, and return what it measured."""
    values = {**vars(args), "side": side, **extra}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "HF_DATASETS_CACHE": cache,
            "LITE_ALIGN_CACHE": cache,
            "OMP_NUM_THREADS": str(args.threads),
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.dpo", "--child", json.dumps(values)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace, precision: str, epochs: int) -> dict[str, Any]:
    """Interleave both sides `args.repeats` times and return medians and ratios."""
    (quantization, dtype), opponents = PRECISIONS[precision]
    lite: list[dict[str, Any]] = []
    trl: dict[str, list[dict[str, Any]]] = {}
    for repeat in range(args.repeats):
        lite.append(
            child("lite", args, quantization=quantization, dtype=dtype, epochs=epochs, counters=repeat == 0)
        )
        for base, autocast in opponents:
            name = f"{base} base{', bf16 autocast' if autocast else ''}"
            result = child("trl", args, trl_base=base, trl_autocast=autocast, epochs=epochs)
            trl.setdefault(name, []).append(result)

    def median(runs: list[dict[str, Any]], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    best = min(trl, key=lambda name: median(trl[name], "seconds_per_pair"))
    ours, theirs = median(lite, "seconds_per_pair"), median(trl[best], "seconds_per_pair")
    return {
        "precision": precision,
        "epochs": epochs,
        "pairs": args.pairs,
        "lite": {key: median(lite, key) for key in ("seconds_per_pair", "memory")},
        "trl": {
            name: {key: median(runs, key) for key in ("seconds_per_pair", "memory", "tokens_per_pair")}
            for name, runs in trl.items()
        },
        "best_trl": best,
        "speed_ratio": theirs / ours,
        "memory_ratio": median(lite, "memory") / median(trl[best], "memory"),
        "counters": lite[0].get("counters", {}),
        "runs": {"lite": lite, "trl": trl},
    }


def show(result: dict[str, Any]) -> None:
    """Print one comparison."""
    lite, theirs = result["lite"], result["trl"][result["best_trl"]]
    print(f"\n{result['precision']}, {result['epochs']} epoch(s), {result['pairs']} pairs, batch {BATCH}")
    print(
        f"  lite-align  {lite['seconds_per_pair']:.3f} CPU s/pair  {lite['memory'] / 2**20:,.0f} MiB over start"
    )
    for name, run in result["trl"].items():
        print(
            f"  TRL ({name})  {run['seconds_per_pair']:.3f} CPU s/pair  {run['memory'] / 2**20:,.0f} MiB over start"
        )
    print(f"  pairs per CPU second: {result['speed_ratio']:.2f}x   memory: {result['memory_ratio']:.2f}x")
    print(f"  tokens a pair: TRL {theirs['tokens_per_pair']:.0f} (with padding)")
    for name, value in result["counters"].items():
        print(f"  lite-align {name}: {value:,.4g}")


def main() -> None:
    """Run the comparison, print it and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="15m", choices=list(workload.SIZES))
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--precision", nargs="+", default=["bf16", "nf4"], choices=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--budget", type=int, default=CPU_TOKENS, help="tokens of a micro-batch of lite-align"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dpo-cpu.json"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lite-align-benchmark")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        values = argparse.Namespace(**json.loads(args.child))
        print(json.dumps((run_lite if values.side == "lite" else run_trl)(values)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    model = workload.make_model(args.folder, args.size)
    rows = workload.write_rows(args.folder / "rows.jsonl", workload.make_rows(model, args.pairs))
    base = argparse.Namespace(
        model=str(model),
        rows=str(rows),
        pairs=args.pairs,
        threads=args.threads,
        repeats=args.repeats,
        budget=args.budget,
    )
    results = {"machine": machine.describe(), "size": args.size, "threads": args.threads, "results": []}
    for line in results["machine"].items():
        print("{:9s} {}".format(*line))
    for precision in args.precision:
        for epochs in args.epochs:
            results["results"].append(compare(base, precision, epochs))
            show(results["results"][-1])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
