"""All losses by name, whatever rows they learn from: what a recipe's `loss` block means, and the table for people."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from lite_align.errors import RecipeError
from lite_align.losses import preference, unpaired
from lite_align.losses.entry import LossEntry

LOSSES: dict[str, LossEntry] = {**preference.LOSSES, **unpaired.LOSSES}
assert len(LOSSES) == len(preference.LOSSES) + len(unpaired.LOSSES), "two losses have one name"


def find(name: str) -> LossEntry:
    """The loss of that name; RecipeError names the nearest one."""
    if name in LOSSES:
        return LOSSES[name]
    elsewhere = {loss.known_as: loss.name for loss in LOSSES.values() if loss.known_as}
    near = [elsewhere[name]] if name in elsewhere else difflib.get_close_matches(name, LOSSES, n=1)
    raise RecipeError(
        f'loss.name: there is no loss "{name}".' + "".join(f" Did you mean {n}?" for n in near),
        remedy=f"The losses are {', '.join(LOSSES)}; lite-align losses explains them.",
    )


def options_for(
    name: str, given: Mapping[str, object], *, length_normalized: bool = False
) -> dict[str, float]:
    """All options of a loss: those given, checked, and defaults for the rest.

    `given` may hold label_smoothing 0 for any loss: no smoothing is what a loss without it does. Raises
    RecipeError with all mistakes at once: unknown loss, unknown option (nearest name), wrong type, value out
    of range, normalising twice.
    """
    loss = find(name)
    known = loss.options.model_fields
    given = {k: v for k, v in given.items() if k in known or k != "label_smoothing" or v != 0}
    problems: list[str] = []
    if length_normalized and loss.per_token:
        problems.append(f"loss.length_normalized: {name} takes means per token already; leave it off.")
    values: dict[str, float] = {}
    try:
        values = loss.options.model_validate(given).model_dump()
    except ValidationError as error:
        for item in error.errors():
            key = str(item["loc"][0])
            if item["type"] == "extra_forbidden":
                near = difflib.get_close_matches(key, known, n=1)
                problems.append(f"{name} has no option {key}." + "".join(f" Did you mean {n}?" for n in near))
            else:
                problems.append(f"option {key} of {name}: {item['msg']}, not {item['input']!r}.")
    if problems:
        raise RecipeError(
            f"The loss {name} does not fit its options.",
            details=problems,
            remedy=f"{name} takes {', '.join(f'{k} (default {v:g})' for k, v in loss.defaults.items())}; "
            "lite-align losses lists all losses.",
        )
    return values


@dataclass(frozen=True)
class LossRow:
    """One line of `lite-align losses` and of the table in the README."""

    name: str
    formula: str
    options: str
    rows: str
    reference: str
    source: str
    summary: str


def describe() -> list[LossRow]:
    """The table of losses for people, in the order of their files."""
    return [
        LossRow(
            loss.name,
            " ".join(loss.formula.split()),
            ", ".join(f"{key} {value:g}" for key, value in loss.defaults.items()),
            loss.rows,
            "yes" if loss.needs_reference else "no",
            loss.source,
            " ".join(loss.summary.split()),
        )
        for loss in LOSSES.values()
    ]


def markdown_table() -> str:
    """The table of losses for the README."""
    columns = ("`loss.name`", "formula", "options and defaults", "rows", "reference", "source")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in ((f"`{r.name}`", r.formula, r.options, r.rows, r.reference, r.source) for r in describe())
    ]
    return "\n".join(lines) + "\n"
