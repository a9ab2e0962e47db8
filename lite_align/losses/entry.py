"""A row of the table of losses: what is known of a loss besides its formula, and how a function enters the table.

A loss is one decorated function. Its keyword-only arguments become recipe options, the second paragraph of its
docstring the formula in `lite-align losses` and in the README.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from torch import Tensor

Options = Mapping[str, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]  # at one half a label says nothing


@dataclass(frozen=True)
class LossEntry:
    """One row of the table: the function, its options, and what is known of it.

    `rows` is what the loss learns from: "pairs" or "thumbs". `at_zero(options)` is the value where policy equals
    reference; None for losses without a reference, and where the value depends on the labels. `per_token` losses
    take means over tokens themselves. `needs_zero` losses are measured from the reference point of a whole step.
    `known_as` is the name in TRL where it differs.
    """

    name: str
    rows: str
    function: Callable[..., Tensor]
    options: type[BaseModel]
    summary: str
    formula: str
    source: str
    needs_reference: bool
    per_token: bool
    at_zero: Callable[[Options], float] | None
    known_as: str = ""
    needs_zero: bool = False

    @property
    def defaults(self) -> dict[str, float]:
        """Every option with its default."""
        return self.options().model_dump()


def entry(
    function: Callable[..., Tensor],
    name: str,
    rows: str,
    *,
    source: str,
    needs_reference: bool = True,
    per_token: bool = False,
    at_zero: Callable[[Options], float] | None = None,
    known_as: str = "",
    needs_zero: bool = False,
) -> LossEntry:
    """Read options, summary and formula of a loss off its signature and docstring."""
    keywords = inspect.signature(function).parameters.values()
    fields: dict[str, Any] = {
        k.name: (k.annotation, k.default) for k in keywords if k.kind is inspect.Parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", strict=True, frozen=True)
    model = create_model(f"{name}_options", __config__=config, **fields)
    summary, formula = (inspect.getdoc(function) or "").split("\n\n")[:2]
    return LossEntry(
        name,
        rows,
        function,
        model,
        summary,
        formula,
        source,
        needs_reference,
        per_token,
        at_zero,
        known_as,
        needs_zero,
    )


def add(table: dict[str, LossEntry], row: LossEntry) -> None:
    """Put a row into a table; two losses of one name are refused."""
    if row.name in table:
        raise ValueError(f"a loss named {row.name} exists already")
    table[row.name] = row
