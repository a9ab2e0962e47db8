"""What a file of votes was made with, kept beside it: seed, share of repetitions, and every rubric that was shown."""

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lite_align.errors import UserError
from lite_align.train import files

DEFAULT_RUBRIC = Path(__file__).with_name("rubric.md")
REPEATS = 0.1


@dataclass(frozen=True)
class Setup:
    """What a file of votes was made with; it lies beside it, so that a session that is reopened goes on alike.

    Attributes:
        seed: of the order of items and of sides.
        repeats: share of the items that are asked once more.
        data: path and SHA-256 of what is labelled.
        rubrics: every rubric that was shown, by its hash.
    """

    seed: int
    repeats: float
    data: dict[str, str]
    rubrics: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        votes: Path,
        *,
        data: dict[str, str],
        rubric: str,
        seed: int | None = None,
        repeats: float | None = None,
    ) -> "Setup":
        """The setup beside a file of votes, made where there is none; a share or a rubric that is new is added.

        Raises:
            UserError: another seed than the stored one is asked for, or the file cannot be read.
        """
        path = votes.with_name(votes.name + ".session.json")
        stored = _stored(path)
        if stored and seed not in (None, stored.seed):
            raise UserError(
                f"{votes} was begun with the seed {stored.seed}, not {seed}.",
                remedy="Leave --seed out, or begin another file with --out.",
            )
        setup = cls(
            seed=stored.seed if stored else secrets.randbelow(2**32) if seed is None else seed,
            repeats=repeats if repeats is not None else stored.repeats if stored else REPEATS,
            data=data,
            rubrics={**(stored.rubrics if stored else {}), rubric_hash(rubric): rubric},
        )
        if setup != stored:
            with files.explained(path):
                files.replace(path, files.dump_json({"schema": 1, **asdict(setup)}, indent=1))
        return setup


def _stored(path: Path) -> Setup | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        return Setup(int(found["seed"]), float(found["repeats"]), dict(found["data"]), dict(found["rubrics"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error!r}.",
            remedy="Remove it: the votes stay, the order of what is still to be asked is drawn anew.",
        ) from None


def rubric_hash(text: str) -> str:
    """What a vote carries of the rubric that was shown: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
