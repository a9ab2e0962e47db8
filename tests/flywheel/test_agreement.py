"""`lite-align agreement`: what is shown, warned of and written. No torch."""

import io
import json
from pathlib import Path

import pytest

from lite_align.cli import run
from lite_align.data import formats, sources
from lite_align.data.types import Message, Pair
from lite_align.data.votes import Choice, Comparison, Vote
from lite_align.errors import DataError, UserError
from lite_align.evaluate.agreement import TooFew
from lite_align.evaluate.statistics import Interval
from lite_align.flywheel.agreement import report, verdict
from lite_align.view import View


def vote(number: int, choice: Choice, annotator: str, **more) -> Vote:
    comparison = Comparison(
        prompt=(Message("user", f"Question {number}?"),),
        a=f"This, {number}.",
        b=f"That one, {number}.",
        category="fact",
        **{name: more.pop(name) for name in ("expected",) if name in more},
    )
    return Vote(comparison=comparison, choice=choice, annotator=annotator, **more)


def agreeing(count: int = 30) -> list[Vote]:
    """Two annotators who differ on the first comparison alone, half of the right answers on either side."""
    return [
        vote(n, "ab"[n % 2] if n or name == "ann" else "b", name)
        for n in range(count)
        for name in ("ann", "ben")
    ]


def opposing(count: int = 30) -> list[Vote]:
    """ann knows, ben takes whatever is shown first."""
    ann = [vote(n, "ab"[n % 2], "ann", first="ab"[n // 2 % 2]) for n in range(count)]
    return [*ann, *(vote(n, "ab"[n // 3 % 2], "ben", first="ab"[n // 3 % 2]) for n in range(count))]


def write(file: Path, votes: list[Vote]) -> str:
    file.write_text("".join(json.dumps(one.record()) + "\n" for one in votes), encoding="utf-8")
    return str(file)


def shown(*paths: str, pairs: Path | None = None) -> str:
    out = io.StringIO()
    report(paths, View(file=out, errors=out), pairs=pairs)
    assert all(len(line) <= 100 for line in out.getvalue().splitlines())
    return " ".join(out.getvalue().split())


def test_figures_and_what_is_to_be_discussed_are_shown(tmp_path: Path) -> None:
    text = shown(write(tmp_path / "v.jsonl", agreeing()))
    assert "60 votes of 2 annotators" in text
    assert "29 with a preferred answer; without: annotators differ (1)" in text
    assert "discuss ann: a · ben: b · fact" in text
    assert "prompt: Question 0?" in text
    assert "more comparisons" not in text
    assert "The labels agree well enough to train and to decide on: alpha 0.93" in text
    assert "too few (0)" in text  # nobody was asked again
    assert "warning" not in text


def test_disagreement_and_a_labeller_who_takes_the_first_are_warned_of(tmp_path: Path) -> None:
    text = shown(write(tmp_path / "v.jsonl", opposing()))
    assert "warning alpha is below 0.4" in text
    assert "ben chooses the answer shown first in 100 % [89 %, 100 %] of choices." in text
    assert "ann chooses" not in text
    assert "not agree enough to decide anything on" in text
    assert "and 5 more comparisons on which annotators differ" in text


def test_hostile_text_and_notes_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    votes = [*agreeing(), vote(0, "b", "ben", note="\x1b]0;title\x07look \x9b31m")]
    text = shown(write(tmp_path / "v.jsonl", votes))
    assert "ben notes: look" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        (TooFew(3), "Too little evidence: too few (3)"),
        (Interval(0.3, 0.1, 0.5, 40), "not agree enough"),
        (Interval(0.5, 0.3, 0.7, 40), "not certain"),
        (Interval(0.5, 0.41, 0.7, 40), "well enough"),
    ],
)
def test_the_verdict_follows_alpha_and_its_interval(alpha: Interval | TooFew, words: str) -> None:
    assert words in verdict(alpha)


def test_pairs_are_what_the_votes_themselves_train(tmp_path: Path) -> None:
    votes = [*agreeing(12), vote(1, "b", "cem"), vote(20, "tie", "ann")]
    path, out = write(tmp_path / "v.jsonl", votes), tmp_path / "pairs.jsonl"
    text = shown(path, pairs=out)
    assert f"saved {out} · 11 pairs with weights" in text
    assert f"lite-align dpo {out}" in text
    read: list[list[tuple]] = []
    for file in (path, str(out)):
        table = sources.read(file)
        rows = formats.convert(table, formats.detect(table, wanted="pair"))
        read.append(
            [
                (r.prompt, r.chosen, r.rejected, r.category, r.id, r.weight)
                for r in rows
                if isinstance(r, Pair)
            ]
        )
    assert read[0] == read[1]
    table = sources.read(str(out))
    assert formats.detect(table).name == "pair.chat"
    first = table.rows[0][1]
    assert (first["annotators"], first["weight"]) == (["ann", "ben", "cem"], 3 / 5)
    with pytest.raises(UserError, match="exists already"):
        shown(path, pairs=out)


def test_several_files_are_one_and_a_later_vote_counts(tmp_path: Path) -> None:
    ann, ben = agreeing()[::2], agreeing()[1::2]
    paths = [
        write(tmp_path / f"{n}.jsonl", votes) for n, votes in enumerate((ann, ben, [vote(0, "a", "ben")]))
    ]
    text = shown(*paths)
    assert "61 votes of 2 annotators" in text
    assert "30 with a preferred answer" in text
    assert "discuss" not in text


def test_other_files_and_votes_without_a_preference_are_errors(tmp_path: Path) -> None:
    pairs = tmp_path / "p.jsonl"
    pairs.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"holds pair.text .*, not votes"):
        shown(str(pairs))
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="no comparison has a preferred answer"):
        shown(write(tmp_path / "v.jsonl", [vote(1, "tie", "ann")]), pairs=out)
    assert not out.exists()


def test_the_command_writes_json_and_names_what_to_can_be(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "v.jsonl", opposing())
    assert run(["agreement", path, "--json", "--to", "pairs", str(tmp_path / "p.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["alpha"] == found["figures"]["alpha/fact"]
    assert found["figures"]["alpha"]["count"] == 30
    assert found["annotators"]["ben"]["takes_first"]["value"] == 1
    assert found["annotators"]["ben"]["consistency"] == {"value": None, "low": None, "high": None, "count": 0}
    assert len(found["discuss"]) == len(found["left_out"]) == 10
    assert found["preferred"] == 20
    assert any("ben chooses" in warning for warning in found["warnings"])
    assert run(["agreement", path, "--to", "pear", "x"]) == 2
    assert "--to pairs OUT.jsonl" in capsys.readouterr().err
