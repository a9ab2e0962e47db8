"""The options of a command start empty, so that a stage can be called from Python without them."""

from lite_align.stages.command import CommandOptions


def test_defaults_start_a_new_run():
    command = CommandOptions()
    assert (command.out, command.resume, command.dry_run) == (None, False, False)
    assert command.accept_drift == ()
