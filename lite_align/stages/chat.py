"""`lite-align chat`: talk to the policy of a run; `/base` shows the same answer without the adapter."""

import sys
from collections.abc import Callable
from pathlib import Path

from lite_align.data.types import Conversation, Message
from lite_align.errors import UserError
from lite_align.recipe import from_dict
from lite_align.train.record import read_record
from lite_align.view import View

MAX_NEW_TOKENS = 512
_HELP = (
    "an empty line or Ctrl-D ends · /new starts again · /base answers the last message without the adapter"
)

Answer = Callable[[Conversation, bool], str]
"""Conversation and whether the adapter is on, to the text of the next turn."""


def chat(run_dir: Path, view: View) -> None:
    """Load the base and adapter of a run and answer line by line until the input ends.

    Raises:
        UserError: no such run, or it saved no adapter.
        ModelError: its base model cannot be loaded.
    """
    if not (run_dir / "run.json").exists():
        raise UserError(f"{run_dir} is not a run folder", remedy="lite-align runs lists them.")
    adapter = run_dir / "adapters" / "policy"
    if not adapter.is_dir():
        raise UserError(f"{run_dir} has no adapter yet", remedy="Finish it with --resume.")
    answer, name = load(run_dir, adapter)
    view.section("model", f"{name} with {adapter}", _HELP)
    converse(answer, view, lambda: input(" you       "), interactive=sys.stdin.isatty())


def load(run_dir: Path, adapter: Path) -> tuple[Answer, str]:
    """The function that answers as the run's policy (or its base), and the base's name."""
    import torch

    from lite_align.data.render import Renderer
    from lite_align.model.backbone import Backbone, Role
    from lite_align.model.load import load_model

    recipe = from_dict(read_record(run_dir)["recipe"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(recipe.model, device=device)
    backbone = Backbone(loaded, recipe.lora, seed=recipe.train.seed)
    backbone.load_adapter(Role.POLICY, adapter)
    renderer = Renderer(loaded.tokenizer)

    def answer(conversation: Conversation, with_adapter: bool) -> str:
        prompt = renderer.prompt_ids(conversation)
        with backbone.role(Role.POLICY if with_adapter else Role.REFERENCE):
            (ids,) = backbone.generate([prompt], stop_ids=renderer.stop_ids, max_new_tokens=MAX_NEW_TOKENS)
        text = loaded.tokenizer.decode(
            [i for i in ids if i not in renderer.stop_ids], skip_special_tokens=True
        )
        return str(text).strip()

    return answer, loaded.name


def converse(answer: Answer, view: View, read_line: Callable[[], str], *, interactive: bool = True) -> None:
    """Answer each line that `read_line` gives until it is empty or the input ends."""
    said: list[Message] = []
    while True:
        try:
            line = read_line().strip()
        except EOFError:
            line = ""
        if not line:
            return
        if line == "/new":
            said.clear()
            view.section("chat", "new conversation")
        elif line == "/base":
            if said:
                view.section("base", answer(tuple(said[:-1]), False))
        else:
            said.append(Message("user", line))
            if not interactive:
                view.section("you", line)
            said.append(Message("assistant", answer(tuple(said), True)))
            view.section("answer", said[-1].content)
