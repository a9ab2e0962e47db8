"""`lite-align label FILE`: from the arguments to a session, to the page or the terminal, and what was saved."""

from dataclasses import dataclass
from pathlib import Path

from lite_align.errors import UserError
from lite_align.flywheel import items
from lite_align.flywheel.label import server, setup, terminal
from lite_align.flywheel.label.ballot import Ballot
from lite_align.flywheel.label.session import Session, annotator_name
from lite_align.view import View

ENDING = ".votes.jsonl"


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What the command line asks for; see its help."""

    out: Path | None = None
    annotator: str | None = None
    rubric: Path | None = None
    pairs: int = 1
    repeats: float | None = None
    seed: int | None = None
    disagreements: bool = False
    terminal: bool = False
    host: str = server.LOOPBACK
    port: int = 0


def label(file: str, options: LabelOptions, view: View) -> None:
    """Label a file until Ctrl-C, or until the annotator at the terminal is done.

    Raises:
        UserError: the file, the rubric or an option cannot be used.
        RunInUse: another process writes the same file of votes.
    """
    if options.host not in (server.LOOPBACK, "localhost"):
        raise UserError(
            f"The page is served on {server.LOOPBACK} only, not on {options.host}: it shows private text.",
            remedy=f"From another machine: ssh -L 8000:{server.LOOPBACK}:8000 HOST, with --port 8000 there.",
        )
    annotator = annotator_name(options.annotator) if options.annotator is not None else None
    rubric = _rubric(options.rubric)
    out = options.out or votes_path(file)
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent}.", remedy="Make it, or choose another --out.")
    is_votes = out.exists() and Path(file).exists() and out.samefile(file)
    found = None if is_votes else items.read(file, pairs=options.pairs)
    ballot = Ballot(out)
    try:
        found = found or items.read(file)  # an unfinished last line was set aside
        kept = setup.Setup.open(
            out,
            data={"path": file, "sha256": found.sha256},
            rubric=rubric,
            seed=options.seed,
            repeats=options.repeats,
        )
        session = Session(found, ballot, kept, rubric, disagreements=options.disagreements)
        _introduce(view, file, found, session)
        before = ballot.rows
        if options.terminal:
            terminal.label(session, view, annotator)
        else:

            def show(address: str) -> None:
                view.section("page", address, "Ctrl-C ends it; every vote is saved at once.")

            server.serve(session, show, name=Path(file).name, annotator=annotator, port=options.port)
        view.section("saved", f"{ballot.rows - before:,} new rows, {ballot.rows:,} in all → {out}")
        if ballot.rows:
            view.section("next", f"lite-align dpo {out}")
    finally:
        ballot.close()


def votes_path(file: str) -> Path:
    """Where votes on a file go: `data.votes.jsonl` beside `data.jsonl`; a file of such a name takes them itself."""
    path = Path(file)
    return path if path.name.endswith(ENDING) else path.with_name(path.stem + ENDING)


def _rubric(path: Path | None) -> str:
    source = path or setup.DEFAULT_RUBRIC
    try:
        text = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{source} cannot be read: {error}.", remedy="Give a rubric as text or Markdown in UTF-8."
        ) from None
    return text


def _introduce(view: View, file: str, found: items.Items, session: Session) -> None:
    ballot = session.ballot
    if ballot.set_aside:
        view.warn(
            f"The last line of {ballot.path} was cut off by a kill: {ballot.set_aside:,} bytes, no vote, were moved to "
            f"{ballot.torn_path}."
        )
    view.section("items", f"{file} · {len(found.comparisons):,} comparisons", *found.notes)
    names = ballot.tally.annotators
    whose = f" of {', '.join(names)}" if names else ""
    view.section("votes", f"{ballot.path} · {ballot.rows:,} rows{whose}")
    strangers = sum(
        given.comparison not in session.comparisons for name in names for given in ballot.tally.standing(name)
    )
    if strangers:
        view.section(
            "", f"{strangers:,} of the votes are on comparisons that {file} does not hold; they stay"
        )
