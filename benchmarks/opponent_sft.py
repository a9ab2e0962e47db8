"""TRL's SFTTrainer with its best flags on a CPU, each with its reason; what trainers have in common is in `opponent`.

Two ways to lay rows out are tried, and the faster is the opponent: padded to the longest of eight rows of like length;
or one row after the other without padding, which SFTTrainer makes for flash attention and which on a CPU costs a mask
of all pairs of tokens. Its packing puts several rows into one example, so that a step would train on more rows.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import opponent
from benchmarks.opponent import FLAGS, VARIANTS, Flag, Variant
from benchmarks.sides import Side, Work, timing
from benchmarks.workload import TEMPLATE, read_rows

TRAINED = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
MARKED = (
    "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\\n' }}"
)
"""The same template with the marks that SFTTrainer reads: it writes the same text, and trains what we train."""

SFT_FLAGS = FLAGS | {
    "assistant_only_loss": Flag(True, "the loss covers answers and their stop tokens, as here"),
    "packing": Flag(False, "a packed example holds several rows: steps would have more of them than here"),
    "max_length": Flag(None, "no row is that long; needed without padding"),
    "loss_type": Flag("nll", "as here"),
}
LAYOUTS = {
    "padded": Flag(False, "rows of like length stand in one batch; plain causal attention"),
    "no padding": Flag(True, "no token is wasted, at the price of a mask"),
}
"""Values of `padding_free`."""


def sides(precision: str) -> dict[str, Side]:
    """All variants and layouts for a precision, by name."""
    return {
        f"{variant.name}, {layout}": Side(
            "benchmarks.opponent_sft", {"variant": asdict(variant), "layout": layout}
        )
        for variant in VARIANTS[precision]
        for layout in LAYOUTS
    }


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One run of SFTTrainer, its steps timed from inside; then the loss that it started from, off the clock."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    variant, layout = Variant(**settings["variant"]), LAYOUTS[settings["layout"]]
    rows = datasets.Dataset.from_list(sorted_rows(work))
    held: list[Any] = []

    def trainer(folder: str, clock: Any) -> Any:
        template = Path(folder) / "template.jinja"
        template.write_text(TEMPLATE.replace(TRAINED, MARKED), encoding="utf-8")
        config = SFTConfig(
            **opponent.configuration(SFT_FLAGS, variant, work, folder),
            padding_free=layout.value,
            chat_template_path=str(template),
        )
        made = SFTTrainer(
            args=config, train_dataset=rows, callbacks=[clock], **opponent.model_and_adapter(variant, work)
        )
        held.append(made)
        return made

    steps, memory = opponent.train(trainer)
    return {**timing(0.0, steps, work), "memory": memory, **start(held[0])}


def start(trainer: Any) -> dict[str, float]:
    """Trained tokens of all rows, and the loss of the model without its adapter on them."""
    import torch

    loss, tokens = 0.0, 0
    with torch.no_grad(), trainer.model.disable_adapter():
        for batch in batches(trainer):
            count = int((batch["labels"][:, 1:] != -100).sum())
            with trainer.compute_loss_context_manager():
                loss += float(trainer.compute_loss(trainer.model, dict(batch))) * count
            tokens += count
    return {"trained_tokens": tokens, "start_loss": loss / tokens}


def batches(trainer: Any) -> Iterator[dict[str, Any]]:
    """Batches of all rows, in order."""
    yield from trainer.get_train_dataloader()


def sorted_rows(work: Work) -> list[dict[str, Any]]:
    """The rows, the longest first: rows of like length stand in one batch."""
    return opponent.longest_first(work, read_rows(Path(work.rows)), lambda row: [row["messages"]])
