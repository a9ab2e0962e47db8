"""Answers side by side: marks by words, and the groups that they are filtered by."""

from lite_align.evaluate.pages.answers import before_and_after, differences, groups, tokens_note


def test_differences_are_marked_by_words() -> None:
    before, after = differences("The library opens at ten. It is nice.", "The library opens at ten sharp.")
    assert [(s.text, s.mark) for s in before] == [("The library opens at ", ""), ("ten. It is nice.", "del")]
    assert [(s.text, s.mark) for s in after] == [("The library opens at ", ""), ("ten sharp.", "ins")]
    # One common word between two changes is not a match worth showing: "so" stays inside the mark.
    before, after = differences("It is good so far", "It is bad so what")
    assert [(s.text, s.mark) for s in after] == [("It is ", ""), ("bad so what", "ins")]
    # Nothing in common, or too much to compare: plain text.
    assert [s.mark for side in differences("Take a pin", "Call someone else") for s in side] == ["", ""]
    long = "word " * 1600
    assert [s.mark for s in differences(long, long + "x")[1]] == [""]


def test_differences_lose_no_text() -> None:
    texts = ("a  b\n\nc", " lead a b trail ", "x\ty", "")
    for before in texts:
        for after in texts:
            left, right = differences(before, after)
            assert ("".join(s.text for s in left), "".join(s.text for s in right)) == (before, after)


def test_answers_are_grouped_by_category_in_the_order_of_names() -> None:
    rows = [
        {"prompt": "p", "category": category, "before": "a", "after": "b", "after_tokens": 1200}
        for category in ("unsafe", None, "fact")
    ]
    shown = before_and_after(rows)
    assert [one.group for one in shown] == [2, 0, 1]
    assert groups(shown) == [(0, ""), (1, "fact"), (2, "unsafe")]
    assert [side.note for side in shown[0].sides] == ["", "1,200 tokens"]
    assert tokens_note(True) == ""


def test_answers_that_did_not_change_are_shown_once() -> None:
    (one,) = before_and_after([{"prompt": "p", "before": "same", "after": "same", "after_tokens": 2}])
    assert [(side.title, side.note, [span.text for span in side.spans]) for side in one.sides] == [
        ("Before and after", "2 tokens", ["same"])
    ]
