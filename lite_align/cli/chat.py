"""`lite-align chat RUN`: talk to the model that a run trained."""

from lite_align.cli import options


def chat(run: options.RunFolder, debug: options.Debug = False) -> None:
    """Talk to the model of a run."""
    from lite_align.stages import chat as stage
    from lite_align.view import View

    stage.chat(run, View())
