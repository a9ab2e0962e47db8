"""`lite-align judge FILE --revise`: critique, revision, pair (Constitutional AI, arXiv 2212.08073, section 3.1).

For every answer one principle of the constitution is drawn. The writer is asked what is wrong with the answer by it,
then for a better one: the revision is chosen, the answer rejected. Nobody has compared the two yet: `label` does.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lite_align.data.types import Conversation, Message
from lite_align.errors import UserError
from lite_align.flywheel import drafts as reading
from lite_align.flywheel.drafts import Draft
from lite_align.flywheel.judge import loading
from lite_align.flywheel.judges.opening import Asked
from lite_align.flywheel.rubrics import Constitution, Principle, read
from lite_align.flywheel.writers import BaseWriter, EndpointWriter, Writer, Written
from lite_align.train import files
from lite_align.view import View

ENDING, LEFT_OUT = ".revised.jsonl", ".left-out.jsonl"
TOGETHER = 16
"""Answers that are revised before their pairs are written."""


class Revision(NamedTuple):
    """What became of a draft; `problem` says why there is no pair of it."""

    draft: Draft
    principle: Principle
    critique: str
    text: str
    problem: str | None


def revise(file: str, asked: Asked, out: Path | None, view: View) -> None:
    """Write a pair for every answer of a file that was revised.

    Raises:
        UserError: the file, the writer or the constitution cannot be used.
    """
    if asked.kind not in ("base", "endpoint"):
        raise UserError(f"{asked.by} writes no revisions.", remedy="Revise with --by base or a URL.")
    found = reading.read(file)
    constitution = read(Constitution, asked.rubric)
    out = out or Path(file).with_name(Path(file).stem + ENDING)
    left_out = out.with_name(out.name.removesuffix(".jsonl") + LEFT_OUT)
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent}.", remedy="Make it, or choose another --out.")
    if out.exists() and Path(file).exists() and out.samefile(file):
        raise UserError(f"{file} is read here.", remedy="Choose another --out.")
    with closing(_writer(asked, view)) as writer:
        mark = {"judge": writer.name, "rubric": constitution.hash}
        done = {row["id"] for path in (out, left_out) for row in rows_of(path) if mark.items() <= row.items()}
        left = [draft for draft in found.drafts if draft.id not in done]
        view.section("data", f"{file} · {len(found.drafts):,} answers", *found.notes)
        view.section("writer", writer.name, f"constitution {constitution.name} · {constitution.hash}")
        new: list[Revision] = []
        with view.bar("revise", len(found.drafts), "answers", len(found.drafts) - len(left)) as bar:
            for start in range(0, len(left), TOGETHER):
                some = revised(writer, constitution, left[start : start + TOGETHER], asked.seed)
                _append(out, [pair(one) | mark for one in some if not one.problem])
                _append(left_out, [refusal(one) | mark for one in some if one.problem])
                new += some
                bar.advance(len(some))
        _report(new, len(done), writer, out, left_out, view)


def revised(writer: Writer, constitution: Constitution, drafts: Sequence[Draft], seed: int) -> list[Revision]:
    """Criticise and revise answers; the seed and the answer alone decide the principle."""
    principles = [random.Random(f"{seed} {one.id}").choice(constitution.principles) for one in drafts]
    asks = [_critique(one, by) for one, by in zip(drafts, principles, strict=True)]
    critiques = writer.write(asks)
    further = [
        (*turns, Message("assistant", one.text), Message("user", by.revision))
        for turns, one, by in zip(asks, critiques, principles, strict=True)
        if not _no_critique(one)
    ]
    texts = iter(writer.write(further))
    found: list[Revision] = []
    for draft, by, critique in zip(drafts, principles, critiques, strict=True):
        problem = _no_critique(critique)
        text = Written() if problem else next(texts)
        found.append(Revision(draft, by, critique.text, text.text, problem or _no_revision(draft, text)))
    return found


def _critique(draft: Draft, principle: Principle) -> Conversation:
    return (*draft.prompt, Message("assistant", draft.answer), Message("user", principle.critique))


def _no_critique(written: Written) -> str | None:
    if written.problem:
        return f"critique {written.problem}"
    return None if written.text else "critique empty"


def _no_revision(draft: Draft, written: Written) -> str | None:
    if written.problem:
        return f"revision {written.problem}"
    if not written.text:
        return "revision empty"
    return "revision unchanged" if written.text.split() == draft.answer.split() else None


def pair(revision: Revision) -> dict[str, Any]:
    """A row of `pair.chat`: the revision is chosen, the answer rejected."""
    draft = revision.draft
    row = {
        "id": draft.id,
        "category": draft.category,
        "prompt": [asdict(message) for message in draft.prompt],
        "chosen": revision.text,
        "rejected": draft.answer,
        "principle": revision.principle.name,
        "critique": revision.critique,
    }
    return {name: value for name, value in row.items() if value is not None}


def refusal(revision: Revision) -> dict[str, Any]:
    """A row that says why there is no pair."""
    return {"id": revision.draft.id, "problem": revision.problem, "principle": revision.principle.name}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that this command wrote; a last one that a kill cut is taken away.

    Raises:
        UserError: a line is no row.
    """
    if not path.exists():
        return
    with files.explained(path):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            files.replace(path, whole)
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}:{number} is no row: {error}.",
                remedy="Mend or remove the line, or choose another --out.",
            ) from None
        if isinstance(row, dict) and "id" in row:
            yield row


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    with files.explained(path):
        files.append(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows), sync=True)


def _writer(asked: Asked, view: View) -> Writer:
    if asked.kind == "endpoint":
        return EndpointWriter(asked.endpoint(), at_once=asked.at_once)
    return BaseWriter(loading(asked, view)(None))


def _report(
    new: Sequence[Revision], before: int, writer: Writer, out: Path, left_out: Path, view: View
) -> None:
    problems = Counter(one.problem.partition(":")[0] for one in new if one.problem)
    pairs = len(new) - problems.total()
    principles = Counter(one.principle.name for one in new if not one.problem)
    lines = [f"{len(new):,} answers: {pairs:,} pairs" + (f", {before:,} were done before" if before else "")]
    if principles:
        lines.append(
            "by principle: " + " · ".join(f"{name} {count:,}" for name, count in principles.most_common())
        )
    if problems:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in problems.most_common())
        lines.append(f"left out, and listed in {left_out.name}: {kinds}")
    view.section("revised", *lines)
    view.section("took", *writer.tell())
    if pairs:
        view.warn("These pairs are unproved: nobody compared a revision with its answer yet.")
        view.section("saved", f"{out} · {pairs:,} new pairs")
        view.section("next", f"lite-align label {out}", f"lite-align dpo {out}")
    view.json_record(
        {
            "schema": 1,
            "judge": writer.name,
            "out": str(out),
            "answers": len(new),
            "pairs": pairs,
            "left_out": dict(problems),
            "before": before,
        }
    )
