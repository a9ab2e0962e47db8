"""Folders of what a command makes in several steps, each known by what it was made of; none is written over. No torch.

A JSON file in the folder of the command says for each step by name: its folder, and the hash of its inputs.
"""

import json
from pathlib import Path

from lite_align.errors import UserError
from lite_align.train import files


class Places:
    """The steps of one folder.

    Args:
        root: the folder of the command.
        file: name of the JSON file in it.
    """

    def __init__(self, root: Path, file: str) -> None:
        self.root, self.path = root, root / file

    def require_own(self, what: str, remedy: str) -> None:
        """Refuse a folder that something else has made.

        Raises:
            UserError: it holds files, and none that says what they are.
        """
        if self.root.exists() and not self.path.exists() and any(self.root.iterdir()):
            raise UserError(f"{self.root} is in use and is not the folder of a {what}.", remedy=remedy)

    def find(self, name: str, inputs: str) -> tuple[Path, bool]:
        """The folder of a step, and whether it was begun with these inputs; if not, it is one that is not there."""
        known = self._read().get(name, {})
        if known.get("inputs") == inputs:
            return self.root / known["folder"], True
        number = 1
        while (self.root / numbered(name, number)).exists():
            number += 1
        return self.root / numbered(name, number), False

    def folder(self, name: str) -> Path:
        """The folder in which a step was begun last. Raises KeyError."""
        return self.root / self._read()[name]["folder"]

    def note(self, name: str, folder: Path, inputs: str) -> None:
        """Write down what a step is about to be made of."""
        state = {**self._read(), name: {"folder": folder.name, "inputs": inputs}}
        with files.explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            files.replace(self.path, files.dump_json(state, indent=1))

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(
                f"{self.path} cannot be read: {error}",
                remedy="Delete it: then every step runs again in a new folder.",
            ) from error


def numbered(name: str, number: int) -> str:
    """`name`, then `name-0002` and so on."""
    return name if number == 1 else f"{name}-{number:04d}"
