"""JSON values as text of a page."""

from lite_align.evaluate.pages.texts import clean, command_line, facts, settings


def test_the_command_can_be_pasted() -> None:
    assert command_line(["lite-align", "dpo", "my data.jsonl"]) == "lite-align dpo 'my data.jsonl'"
    assert command_line(None) == ""


def test_facts_are_flat_and_readable() -> None:
    block = {"bytes": {"peak": 2**31}, "share": 0.5, "rows": 1200, "ok": True, "left_out": 1, "none": {}}
    assert facts(block, ("left_out",)) == [
        ("bytes.peak", "2.00 GiB"),
        ("share", "50 % of rows"),
        ("rows", "1,200"),
        ("ok", "true"),
        ("none", "{}"),
    ]


def test_settings_tell_who_chose() -> None:
    recipe = {"loss": {"beta": 0.3, "name": "ipo"}, "train": {"epochs": 2}}
    found = settings(recipe, {"loss.beta": "--set", "train.epochs": "auto: few rows"})
    assert [(row.key, row.changed, row.default) for row in found] == [
        ("loss.beta", True, False),
        ("loss.name", False, True),
        ("train.epochs", False, False),
    ]


def test_text_loses_what_could_mislead() -> None:
    assert "\u202e" not in clean("a\u202eb")
    assert clean(["\x1b[31m"]).startswith("[")
