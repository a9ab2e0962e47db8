"""Progress and agreement in words."""

from lite_align.flywheel.label.session import KNOWN_ANSWERS, YOURSELF, Progress, Shared
from lite_align.flywheel.label.wording import agreement, progress


def test_progress_in_words() -> None:
    assert progress(Progress(0, 40, None, {})) == "0 of 40 · 0 %"
    assert progress(Progress(12, 1040, 20.0, {})) == "12 of 1,040 · 1 % · about 1 min left"
    assert progress(Progress(12, 40, 372.0, {})) == "12 of 40 · 30 % · about 6 min left"
    assert progress(Progress(12, 40, 9000.0, {})) == "12 of 40 · 30 % · about 2.5 h left"
    assert progress(Progress(40, 40, 0.0, {})) == "40 of 40 · 100 %"


def test_agreement_in_words() -> None:
    assert agreement(None) == ["agreement is shown after 10 votes"]
    assert agreement([]) == ["agreement: nobody else has voted on these yet"]
    assert agreement([Shared("ben", 12, 14, 0.714), Shared(KNOWN_ANSWERS, 2, 2), Shared(YOURSELF, 0, 1)]) == [
        "equal votes with ben: 12 of 14 · kappa 0.71",
        "equal votes with known answers: 2 of 2",
        "equal votes with your own earlier ones: 0 of 1",
    ]
