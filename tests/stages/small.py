"""Small pairs, recipes and stages on a tiny model, for the tests of the stages and of their behaviour."""

import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lite_align.data import forest
from lite_align.data.formats.thumbs import take_apart
from lite_align.data.render import Renderer
from lite_align.data.types import Chat, Message, Pair, Rated, Rendered, Source, Tree
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.recipe import (
    DataOptions,
    DPORecipe,
    LoraOptions,
    LossOptions,
    ModelOptions,
    PairDataOptions,
    TrainOptions,
)
from lite_align.stages import reference
from lite_align.stages import rows as rows_of
from lite_align.stages.dpo import DPO, PairSet
from lite_align.stages.kto import KTO, ThumbSet, held_out_stand_ins, list_pairings, windows_of, with_reference
from lite_align.stages.pairs import PAIRS
from lite_align.stages.thumbs import THUMBS
from lite_align.train.engine import Engine
from lite_align.view import View

WORDS = "the quick brown fox asks a question and lazy dog answers user system hello world".split()
SHAPE = LoraOptions(rank=8, alpha=16.0)


def rows(count: int, *, prompts: int | None = None, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of prompt.text with answers of 1 to 12 words; every `prompts` rows a prompt comes again."""
    source = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(source.choice(WORDS) for _ in range(source.randint(least, most)))

    questions = [f"{words(2, 15)} {n}?" for n in range(prompts or count)]
    return [
        {
            "prompt": questions[n % len(questions)],
            "chosen": f"{words(1, 12)} {n}.",
            "rejected": f"{words(1, 12)} not {n}.",
            "category": "even" if n % 2 == 0 else "odd",
        }
        for n in range(count)
    ]


def write(file: Path, lines: Sequence[object]) -> Path:
    """Write rows as JSON lines; a string stands as it is."""
    text = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in lines]
    file.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return file


def as_pairs(lines: Sequence[dict[str, str]]) -> list[Pair]:
    """The rows as pairs of one user turn and two answers."""
    return [
        Pair(
            Source("rows.jsonl", number),
            row.get("category"),
            prompt=(Message("user", row["prompt"]),),
            chosen=(Message("assistant", row["chosen"]),),
            rejected=(Message("assistant", row["rejected"]),),
        )
        for number, row in enumerate(lines, 1)
    ]


def as_chats(lines: Sequence[dict[str, str]]) -> list[Chat]:
    """The rows as conversations that end with the chosen answer; every third one goes on for another round."""

    def turns(number: int, row: dict[str, str]) -> tuple[Message, ...]:
        texts = [row["prompt"], row["chosen"], *(["and?", row["rejected"]] if number % 3 == 0 else [])]
        return tuple(Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts))

    return [
        Chat(Source("rows.jsonl", number), row.get("category"), messages=turns(number, row))
        for number, row in enumerate(lines, 1)
    ]


def chat_lines(count: int, *, prompts: int | None = None) -> list[dict[str, Any]]:
    """`rows` as lines of sft.messages."""
    return [
        {
            "messages": [{"role": turn.role, "content": turn.content} for turn in chat.messages],
            "category": chat.category,
        }
        for chat in as_chats(rows(count, prompts=prompts))
    ]


def as_trees(pairs: Sequence[Pair], tokenizer: Any) -> list[Tree]:
    """The pairs rendered for a tokenizer; all of them must fit."""
    rendered = rows_of.render(PAIRS, pairs, Renderer(tokenizer), DataOptions(max_length=512))
    assert len(rendered.trees) == len(pairs)
    return rendered.trees


def whole(tree: Tree, leaf: int) -> Rendered:
    """The root and one leaf of a tree as a sequence of its own."""
    answer = tree.leaves[leaf]
    return Rendered(tree.root + answer.ids, tree.root_trained + answer.trained)


def backbone(
    folder: Path, *, quantization: str = "none", lora: LoraOptions = SHAPE, seed: int = 42
) -> Backbone:
    """A backbone in fp32 with a fresh adapter."""
    options = ModelOptions.model_validate(
        {"name": str(folder), "quantization": quantization, "dtype": "float32"}
    )
    return Backbone(load_model(options, device="cpu"), lora, seed=seed)


def train_options(**changes: Any) -> TrainOptions:
    """Options without "auto": 8 examples a step, a constant learning rate of 1e-3."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "epochs": 1.0,
        "batch_size": 8,
        "tokens_per_microbatch": 512,
        "schedule": "constant",
        "warmup": 0.0,
        **changes,
    }
    return TrainOptions.model_validate(settings)


def recipe(loss: dict[str, Any] | None = None, **train: Any) -> DPORecipe:
    """A recipe without "auto": sigmoid, beta 0.1, no SFT part, 8 pairs a step, a constant learning rate of 1e-3."""
    return DPORecipe(
        data=PairDataOptions(max_length=512),
        lora=SHAPE,
        loss=LossOptions.model_validate({"beta": 0.1, "sft_weight": 0.0, **(loss or {})}),
        train=train_options(**train),
    )


def pair_set(model: Backbone, pairs: Sequence[Pair], trees: Sequence[Tree]) -> PairSet:
    """A pair set with live reference log-probs, one tree a pass."""
    return PairSet.of(pairs, trees, [reference.compute(model, [tree])[0] for tree in trees])


def stage(
    model: Backbone, lines: Sequence[dict[str, str]], the_recipe: DPORecipe, *, held_out: int = 0
) -> DPO:
    """A DPO stage whose last `held_out` rows are held out."""
    pairs = as_pairs(lines)
    both = pair_set(model, pairs, as_trees(pairs, model.loaded.tokenizer))
    return split(model, both, the_recipe, held_out)


def split(model: Backbone, both: PairSet, the_recipe: DPORecipe, held_out: int) -> DPO:
    """A stage on a pair set of which the last `held_out` pairs are held out."""
    assert both.reference is not None
    values = [tuple(row) for row in both.reference.tolist()]
    cut = len(both.pairs) - held_out
    train = PairSet.of(both.pairs[:cut], both.trees[:cut], values[:cut])
    return DPO(model, the_recipe, train, PairSet.of(both.pairs[cut:], both.trees[cut:], values[cut:]))


def as_thumbs(lines: Sequence[dict[str, str]]) -> list[Rated]:
    """Chosen answers with a thumb up and, from every other prompt, rejected ones with a thumb down as well."""
    pairs = as_pairs(lines)
    return [row for number, pair in enumerate(pairs) for row in take_apart([pair]) if row.label or number % 2]


def thumb_examples(rated: Sequence[Rated], tokenizer: Any) -> list[tuple[Rated, Tree]]:
    """The rows with their trees; all of them must fit."""
    rendered = rows_of.render(THUMBS, rated, Renderer(tokenizer), DataOptions(max_length=512))
    assert len(rendered.trees) == len(rated)
    return rendered.examples


def thumb_set(
    model: Backbone, rated: Sequence[Rated], windows_of: Callable[[ThumbSet], Sequence[tuple[Any, Any]]]
) -> ThumbSet:
    """A set with live reference log-probs, one sequence a pass, for some windows."""
    of = ThumbSet.of(thumb_examples(rated, model.loaded.tokenizer))

    def alone(sequence: Rendered) -> float:
        return reference.compute(model, [forest.single(0, sequence)])[0][0]

    own = [tuple(alone(of.answered[r].under(of.answered[r].prompt)) for r in block) for block in of.groups]
    pairings = [pairing for window, others in windows_of(of) for pairing in list_pairings(window, others)]
    foreign = [(alone(of.answered[other].under(of.answered[row].prompt)),) for row, other in pairings]
    return with_reference(of, own, pairings, foreign)


def thumb_stage(
    model: Backbone, rated: Sequence[Rated], the_recipe: DPORecipe, *, held_out: int = 0, steps: int = 8
) -> KTO:
    """A KTO stage whose last `held_out` rows are held out, for so many steps."""
    cut = len(rated) - held_out
    train = thumb_set(
        model, rated[:cut], lambda of: [windows_of(of, the_recipe).step(step) for step in range(steps)]
    )
    held = thumb_set(model, rated[cut:], lambda of: [(of.groups, held_out_stand_ins(of, the_recipe))])
    return KTO(model, the_recipe, train, held)


def engine(the_stage: DPO | KTO, total_steps: int = 100) -> Engine[Any]:
    """An engine over the POLICY adapter of a stage."""
    named = the_stage.backbone.parameters(Role.POLICY)
    return Engine(Accelerator(cpu=True), named, the_stage.recipe.train, total_steps)


def silent() -> View:
    """A view whose text nobody reads."""
    return View(file=io.StringIO(), errors=io.StringIO())
