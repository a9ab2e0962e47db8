"""The plain way to `eval` and `compare`: whole models in memory, `model.generate` on padded batches, padded passes.

Each model is a copy of the base with its adapter from PEFT's own files; the reward model is a third copy, as sequence
classification. Everything is transformers, peft and torch alone, with the best settings and their reasons.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks import machine, opponent, plain_ppo, workload
from benchmarks.opponent import Flag
from benchmarks.opponent_ppo import until
from benchmarks.plain_ppo import Rollout
from benchmarks.sides import COMMAND_PARTS, Side, Work, command_parts
from benchmarks.stopwatch import Stopwatch

FLAGS = {
    "dtype": Flag(
        "bfloat16", "half the memory traffic of fp32; nothing is trained, so no autocast is needed"
    ),
    "attn_implementation": Flag("sdpa", "without gradients at least as fast as eager, and less memory"),
    "merged": Flag(
        True, "each model has its own weights, to which its adapter can be added: LoRA costs nothing"
    ),
    "autocast_adapter_dtype": Flag(
        False, "adapters beside 4-bit weights in bf16: their products are as cheap"
    ),
    "train_mode": Flag(
        True, "in eval mode bitsandbytes packs 4-bit weights for single tokens: slower for rows"
    ),
    "generation_rows": Flag(32, "of 8, 16, 32 and 64 that with the fewest CPU seconds"),
    "forward_rows": Flag(8, "of 8, 16 and 32 that with the fewest CPU seconds: logits stay small"),
    "sorted_by_length": Flag(True, "rows of like length stand together: least padding"),
    "use_cache": Flag(True, "in generation each token is computed once"),
    "last_by_index": Flag(True, "of a slice, a CPU would multiply each prompt with a copy of the head"),
    "answers_alone": Flag(True, "the head sees the answers, not the prompts"),
}
"""What the opponent does, and why that is the best or the same for both."""

MARGIN = 0.02
"""A probability no further than this from one half is a tie, as in `compare`."""

T = TypeVar("T")
Ids = list[int]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Folders:
    """Where models are: the base, and the adapters of two models and of the reward model, each PEFT's own format."""

    base: str
    first: Path
    second: Path
    reward: Path

    @classmethod
    def of(cls, work: Work, precision: str) -> "Folders":
        """Those of the runs that our side reads."""
        runs = workload.runs_beside(work.rows, precision)
        policies = (runs / name / "adapters" / "policy" for name in ("a", "b"))
        return cls(work.model, *policies, runs / "reward" / "adapters" / "reward")


def side(command: str, precision: str, new_tokens: int) -> Side:
    """The plain side of a command in a precision."""
    settings = {"command": command, "precision": precision, "new_tokens": new_tokens}
    return Side("benchmarks.opponent_evaluation", settings)


# Models.


def loading(precision: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    return {
        "dtype": "float32" if precision == "fp32" else FLAGS["dtype"].value,
        "attn_implementation": FLAGS["attn_implementation"].value,
        "quantization_config": opponent.quantization() if precision == "nf4" else None,
    }


def load_base(folder: str, precision: str) -> nn.Module:
    """A copy of the base."""
    from transformers import AutoModelForCausalLM

    return ready(AutoModelForCausalLM.from_pretrained(folder, **loading(precision)))


def load_model(folder: str, adapter: Path, precision: str) -> nn.Module:
    """A copy of the base with an adapter."""
    return ready(adapted(load_base(folder, precision), adapter, precision))


def load_reward(folder: str, adapter: Path, precision: str) -> nn.Module:
    """A copy of the base with an adapter and a scalar head, which lies beside the adapter."""
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    arguments = loading(precision)
    if arguments["quantization_config"] is not None:
        arguments["quantization_config"].llm_int8_skip_modules = ["score"]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **arguments)
    head = load_file(adapter / "head.safetensors")["score.weight"]
    model.score.weight.data = head[None].to(model.score.weight.dtype)
    return ready(adapted(model, adapter, precision))


def adapted(model: nn.Module, adapter: Path, precision: str) -> nn.Module:
    """A model with an adapter in its weights, or beside them where they have 4 bits and cannot hold it exactly."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig.from_pretrained(adapter)
    if not hasattr(model, "prepare_inputs_for_generation"):
        config.task_type = None  # PEFT would look for what only a model that writes has
    found = PeftModel.from_pretrained(
        model, adapter, config=config, autocast_adapter_dtype=FLAGS["autocast_adapter_dtype"].value
    )
    return found.merge_and_unload() if FLAGS["merged"].value and precision != "nf4" else found


def ready(model: nn.Module) -> nn.Module:
    """Frozen, in the mode that is fastest."""
    return model.requires_grad_(False).train(FLAGS["train_mode"].value)


# Answers, log-probs and scores.


def in_batches(
    items: Sequence[T], length: Callable[[T], int], rows: int, work: Callable[[list[T]], Iterable[Any]]
) -> list[Any]:
    """What `work` makes of batches, in the order of the items; those of like length stand in one batch."""
    order = list(range(len(items)))
    if FLAGS["sorted_by_length"].value:
        order.sort(key=lambda n: length(items[n]))
    found: dict[int, Any] = {}
    for start in range(0, len(order), rows):
        numbers = order[start : start + rows]
        found |= dict(zip(numbers, work([items[n] for n in numbers]), strict=True))
    return [found[n] for n in range(len(items))]


@torch.no_grad()
def answer(model: nn.Module, prompts: Sequence[Ids], stop: int, new_tokens: int) -> list[Ids]:
    """One answer to every prompt, sampled from the model itself."""

    def sampled(some: Sequence[Ids]) -> list[Ids]:
        longest = max(map(len, some))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in some])
        attended = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some])
        output = model.generate(
            input_ids=ids,
            attention_mask=attended,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            eos_token_id=stop,
            pad_token_id=0,
            use_cache=FLAGS["use_cache"].value,
            logits_to_keep=torch.tensor([-1]) if FLAGS["last_by_index"].value else 1,
        )
        return [until(row, stop) for row in output[:, longest:].tolist()]

    return in_batches(prompts, len, FLAGS["generation_rows"].value, sampled)


@torch.no_grad()
def logps(model: nn.Module, rows: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """Log-probs of answers, each with its prompt."""

    def measured(some: Sequence[tuple[Ids, Ids]]) -> list[float]:
        rollout = Rollout([prompt for prompt, _ in some], [said for _, said in some], range(len(some)))
        padded = plain_ppo.padded(rollout, range(len(some)))
        chosen = plain_ppo.token_logps(model, padded, 1.0).logps
        return chosen.where(padded.answers, torch.zeros_like(chosen)).sum(1).tolist()

    return in_batches(rows, lambda row: len(row[0]) + len(row[1]), FLAGS["forward_rows"].value, measured)


@torch.no_grad()
def scores(model: nn.Module, rows: Sequence[Ids]) -> list[float]:
    """Scores of whole conversations, read at their last tokens."""

    def measured(some: Sequence[Ids]) -> list[float]:
        longest = max(map(len, some))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in some])
        attended: Tensor = torch.arange(longest) < torch.tensor([[len(row)] for row in some])
        output = model(input_ids=ids, attention_mask=attended.long(), use_cache=False)
        return output.logits[:, 0].float().tolist()

    return in_batches(rows, len, FLAGS["forward_rows"].value, measured)


# Rows as tokens.


class Chats:
    """Writes conversations as tokens with the tokenizer's own template."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.stop: int = self.tokenizer.eos_token_id

    def prompt(self, messages: Messages) -> Ids:
        """A prompt, as the template asks for an answer."""
        return self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )

    def whole(self, messages: Messages) -> Ids:
        """A conversation up to its last stop token."""
        ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return ids[: len(ids) - ids[::-1].index(self.stop)]

    def text(self, ids: Ids) -> str:
        """An answer as people read it."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


# The two commands.


class Plain:
    """`eval` and `compare`, each from loading to its figures; `watches` count their parts."""

    def __init__(self, folders: Folders, precision: str, new_tokens: int) -> None:
        self.folders, self.precision, self.new_tokens = folders, precision, new_tokens
        self.watches = {part: Stopwatch() for part in COMMAND_PARTS}
        self.tokens = 0
        timed = {name: watch.timed for name, watch in self.watches.items()}
        self.load_base, self.load_model, self.load_reward = map(
            timed["load"], (load_base, load_model, load_reward)
        )
        self.answer = timed["generate"](answer)
        self.logps, self.scores = map(timed["score"], (logps, scores))

    @cached_property
    def chats(self) -> Chats:
        """The tokenizer, loaded once."""
        return self.watches["load"].timed(Chats)(self.folders.base)

    def answers(self, model: nn.Module, prompts: Sequence[Ids]) -> list[Ids]:
        """Sampled answers, whose tokens are counted."""
        found = self.answer(model, prompts, self.chats.stop, self.new_tokens)
        self.tokens += sum(map(len, found))
        return found

    def compare(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """How often the second model's answer is better by the scores (Bradley–Terry); ties count one half."""
        base, precision = self.folders.base, self.precision
        first = self.load_model(base, self.folders.first, precision)
        second = self.load_model(base, self.folders.second, precision)
        reward = self.load_reward(base, self.folders.reward, precision)
        prompts = [self.chats.prompt(row["prompt"]) for row in rows]
        said = [self.chats.text(ids) for model in (first, second) for ids in self.answers(model, prompts)]
        asked = [row["prompt"] for row in rows] * 2
        told = [
            self.chats.whole([*messages, {"role": "assistant", "content": text}])
            for messages, text in zip(asked, said, strict=True)
        ]
        found = self.scores(reward, told)
        before, after = found[: len(rows)], found[len(rows) :]
        better = torch.tensor(after).sub(torch.tensor(before)).sigmoid()
        won = better.round().where((better - 0.5).abs() > MARGIN, 0.5)
        return {"win_rate": float(won.mean())}

    def eval(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Loss and accuracy on pairs, and the KL of sampled answers, of the first model against the base."""
        before = self.load_base(self.folders.base, self.precision)
        after = self.load_model(self.folders.base, self.folders.first, self.precision)
        prompts = [self.chats.prompt(row["prompt"]) for row in rows]
        pairs = [
            (prompt, self.chats.whole(row["prompt"] + row[side])[len(prompt) :])
            for side in ("chosen", "rejected")
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        was, now = (self.logps(model, pairs) for model in (before, after))
        gains = [b - a for a, b in zip(was, now, strict=True)]
        margins = [chosen - rejected for chosen, rejected in zip(gains, gains[len(rows) :])]
        self.answers(before, prompts)
        said = list(zip(prompts, self.answers(after, prompts), strict=True))
        kl = [b - a for a, b in zip(*(self.logps(model, said) for model in (before, after)), strict=True)]
        return {
            "loss": fmean(-value / len(said) for value, (_, said) in zip(now[: len(rows)], pairs)),
            "accuracy": fmean(0.5 * (1 + (margin > 0) - (margin < 0)) for margin in margins),
            "kl": fmean(kl),
        }


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One command: CPU seconds a prompt by part, and memory at the peak above the start."""
    import peft  # noqa: F401  what is imported is counted on neither side
    import transformers
    import transformers.models.llama.modeling_llama

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    precision = settings["precision"]
    plain = Plain(Folders.of(work, precision), precision, settings["new_tokens"])
    torch.manual_seed(42)
    held = machine.resident_bytes()
    machine.reset_peak()
    whole = Stopwatch()
    whole.timed(getattr(plain, settings["command"]))(workload.read_rows(Path(work.rows)))
    memory = machine.peak_bytes() - held
    return {
        **command_parts(plain.watches, whole, work.examples),
        "tokens_per_example": plain.tokens / (2 * work.examples),
        "memory": memory,
    }
