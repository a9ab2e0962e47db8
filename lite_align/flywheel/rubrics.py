"""What AI feedback goes by, in YAML: a rubric to compare by, a constitution to revise by. Read strictly; no torch."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from lite_align.errors import RecipeError
from lite_align.recipe.block import Block
from lite_align.recipe.load import raise_problems, read_file

ASSETS = Path(__file__).parents[1] / "assets"

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Field(min_length=1, strict=False)]


class _Hashed(Block):
    @property
    def hash(self) -> str:
        """What a label carries of it: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


class Rubric(_Hashed):
    """What the better one of two answers is.

    Attributes:
        name: for people.
        question: that is asked of the answers.
        criteria: the most important one first.
    """

    name: Text
    question: Text
    criteria: Items[Text]

    @property
    def text(self) -> str:
        """As a judge reads it."""
        return "\n".join([self.question, "", *(f"{n}. {one}" for n, one in enumerate(self.criteria, 1))])


class Principle(Block):
    """One rule of a constitution.

    Attributes:
        name: for people, and the category of what it finds.
        critique: asks what an answer does against it.
        revision: asks for a better answer.
    """

    name: Text
    critique: Text
    revision: Text


class Constitution(_Hashed):
    """Principles to revise answers by (arXiv 2212.08073, section 3.1)."""

    name: Text
    principles: Items[Principle]


DEFAULTS: dict[type[_Hashed], str] = {Rubric: "rubric.yaml", Constitution: "constitution.yaml"}

Kind = TypeVar("Kind", bound=_Hashed)


def read(kind: type[Kind], path: Path | None) -> Kind:
    """A rubric or a constitution from a file; ours where there is none.

    Raises:
        RecipeError: it cannot be read, or is not what it should be; all mistakes with their lines.
    """
    path = path or ASSETS / DEFAULTS[kind]
    document = read_file(path)
    raise_problems(path, document)
    what = kind.__name__.lower()
    try:
        return kind.model_validate(document.value)
    except ValidationError as error:
        found = [_told(detail, path, document.lines) for detail in error.errors(include_url=False)]
        raise RecipeError(
            f"{path} is no {what}.", details=found, remedy=f"Ours is an example: {ASSETS / DEFAULTS[kind]}"
        ) from error


def _told(detail: Any, path: Path, lines: dict[str, int]) -> str:
    place = list(map(str, detail["loc"]))
    dotted = ".".join(place)
    while place and ".".join(place) not in lines:
        place.pop()
    line = lines.get(".".join(place))
    where = f"{path}:{line}" if line else str(path)
    if detail["type"] == "extra_forbidden":
        return f"{where} {dotted} is not one of its keys"
    return f"{' '.join(filter(None, (where, dotted)))}: {detail['msg']}"
