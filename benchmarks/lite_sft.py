"""lite-align's side of SFT, through the same parts that `lite-align sft` uses."""

from collections.abc import Sequence
from typing import Any

from benchmarks import counters, lite, machine
from benchmarks.sides import Side, Work, timing
from lite_align.data.render import Renderer
from lite_align.model.backbone import Role
from lite_align.recipe import SFTRecipe
from lite_align.stages import rows
from lite_align.stages.chats import chats
from lite_align.stages.sft import SFT
from lite_align.stages.train_sft import numbered


def side(precision: str, sets: Sequence[str] = ()) -> Side:
    """Our side in a precision, with `key=value` settings of the recipe."""
    return Side("benchmarks.lite_sft", {"precision": precision, "sets": list(sets)})


def resolve(work: Work, precision: str, sets: Sequence[str]) -> SFTRecipe:
    """The recipe of the work, with nothing left to decide."""
    return lite.resolve_stage("sft", work, precision, sets, {})


def measure(work: Work, settings: dict[str, Any]) -> dict[str, float]:
    """One run, then the loss that it started from and the counters, off the clock."""
    before = machine.resident_bytes()
    machine.reset_peak()
    recipe = resolve(work, settings["precision"], settings["sets"])
    kind = chats(recipe.loss.train_on)
    read = rows.read(kind, recipe.data, recipe.data.path)
    backbone = lite.load_backbone(recipe)
    rendered = rows.render(kind, read.rows, Renderer(backbone.loaded.tokenizer), recipe.data)
    assert len(rendered.trees) == work.examples, "both sides must train on the same rows"
    trees = numbered(rendered.examples)
    stage = SFT(backbone, recipe, trees, trees)
    engine = lite.make_engine(stage, recipe, len(trees))
    steps = lite.run(stage, engine)
    peak = machine.peak_bytes() - before
    scores = stage.held_out_scores(Role.REFERENCE)
    tokens = sum(row.tokens for row in scores)
    return {
        **timing(0.0, steps, work),
        "memory": peak,
        "parameters": backbone.loaded.parameters,
        "trained_tokens": tokens,
        "start_loss": sum(row.loss for row in scores) / tokens,
        **counters.measure(stage, engine),
    }
