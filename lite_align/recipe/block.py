"""What the parts of a recipe are made of: strict frozen blocks, usual types, and drift classes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

REFUSE: dict[str, Any] = {"drift": "refuse"}
ASK: dict[str, Any] = {"drift": "ask"}
FREE: dict[str, Any] = {"drift": "free"}
"""What a resumed run does when the value has changed: refuse, ask (`--accept-drift KEY`), or take it."""

Auto = Literal["auto"]
Positive = Annotated[float, Field(gt=0)]
PositiveInteger = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Block(BaseModel):
    """A part of a recipe: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
