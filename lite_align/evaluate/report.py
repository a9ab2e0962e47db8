"""report.html: one self-contained page about a run, safe to open whatever the model or the data wrote.

No script, no address outside the page, a content security policy that forbids both, and Jinja escapes every value.
The one markup that goes in unescaped is the curves', which hold no text of the user. Equal folders give equal pages.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lite_align.evaluate import course, curves, optimisation, pictures
from lite_align.evaluate.findings import DASH, Figure, Verdict
from lite_align.evaluate.folder import Record, RunFolder, read
from lite_align.evaluate.pages import ancestry, answers, badges, figures, page
from lite_align.evaluate.pages.texts import clean, command_line, facts, mapping, readable, settings, text_of
from lite_align.evaluate.verdict import judge_folder

MOST_ANSWERS = 100  # the rest stays in answers.jsonl, and the page says so

COLUMNS = ("median", "95 %", "longest")
"""Of the lengths in tokens."""

ORIGINS = (
    ("Versions", "versions"),
    ("Hashes", "hashes"),
    ("Model", "model"),
    ("Reference", "reference"),
    ("Scores", "reward"),
    ("Plan", "plan"),
    ("Measured", "measured"),
    ("Forecast", "forecast"),
    ("Hardware", "hardware"),
)
"""Blocks of run.json that are shown as they are: title and name."""

SECTIONS = (
    ("gates", "Gates", "gates"),
    ("promotion", "Promotion", "promotion"),
    ("curves", "Curves", "curves"),
    ("scores", "Scores", "pictures"),
    ("categories", "Categories", "categories"),
    ("evaluation", "Evaluation", "evaluation_shown"),
    ("answers", "Answers", "answers"),
    ("samples", "Samples", "samples"),
    ("data", "Data", "data"),
    ("lineage", "Lineage", "lineage"),
    ("recipe", "Recipe", "settings"),
    ("repeat", "How to repeat it", "origins"),
)
"""Id, name, and the value without which a section is left out."""


def write(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder, report.html in it or `out`, and return its path.

    Raises:
        UserError: the folder cannot be read.
    """
    return page.save(render(read(run_dir)), out or run_dir / "report.html")


def render(folder: RunFolder) -> str:
    """The page of a run folder as text."""
    verdict = judge_folder(folder)
    gates = badges.gates(folder.gates, folder.promotion, folder.evaluation)
    values = {
        "name": clean(folder.path.resolve().name),
        "stage": clean(folder.run.get("stage", "run")),
        "status": clean(folder.run.get("status", "unknown")),
        "model": clean(folder.part("model").get("name", "")),
        "verdict": verdict,
        "gates": gates,
        "gate_badges": badges.gate_badges(gates),
        "proofs": badges.proofs(folder),
        "promotion": badges.promotion(folder.promotion),
        **_measured(folder, verdict),
        **_answers(folder.answers),
        **_samples(folder),
        **_origin(folder),
    }
    values["sections"] = [(id, name) for id, name, needed in SECTIONS if values[needed]]
    return page.fill("run.html.j2", values)


def _measured(folder: RunFolder, verdict: Verdict) -> dict[str, Any]:
    """Figures, curves and dot plots."""
    evaluation = evaluation_of(folder.evaluation)
    trends, trends_axis = course.trends(folder)
    over_optimisation = optimisation.draw(folder)
    return {
        "figures": [*verdict.figures, *_kl(folder, verdict)],
        "curves": ([over_optimisation] if over_optimisation else []) + curves.draw_all(folder),
        "pictures": pictures.draw_all(folder),
        "categories": verdict.categories,
        "trends": trends,
        "trends_axis": trends_axis,
        "evaluation": evaluation,
        "evaluation_shown": evaluation["lines"] or evaluation["plots"],
    }


def _kl(folder: RunFolder, verdict: Verdict) -> list[Figure]:
    """The KL that `eval` measured, where the verdict has none."""
    measured = figures.Measured.read(mapping(folder.evaluation.get("figures")).get("kl"))
    if measured is None or any("KL" in figure.label for figure in verdict.figures):
        return []
    note = f"{figures.bounds(measured)}, {measured.count:,} rows" if measured.count else "from the evaluation"
    return [Figure("KL to the reference", figures.number(measured.value, measured.unit), note)]


def evaluation_of(block: Record) -> dict[str, Any]:
    """The figures of an eval.json for the page; nothing of an empty one."""
    known, empty = figures.read_figures(block.get("figures"))
    about = {name: block[name] for name in ("time", "command", "data", "probes") if block.get(name)}
    if isinstance(about.get("command"), list):
        about["command"] = command_line(about["command"])
    return {
        "title": "Evaluation",
        "lines": figures.lines(known),
        "plots": figures.plots(known),
        "with_before": any(one.before is not None or one.change is not None for one in known.values()),
        "empty": empty,
        "facts": facts(about),
    }


def _answers(rows: Sequence[Record]) -> dict[str, Any]:
    """Answers before and after."""
    shown = answers.before_and_after(rows[:MOST_ANSWERS])
    left_out = len(rows) - MOST_ANSWERS
    return {
        "answers": shown,
        "answers_title": "Answers before and after",
        "answers_note": "Words that only one of the two has are underlined; answers that share almost nothing are "
        "left plain.",
        "groups": answers.groups(shown),
        "results": [],
        "answers_left_out": f"{left_out:,} more are in answers.jsonl." if left_out > 0 else "",
    }


def _samples(folder: RunFolder) -> dict[str, Any]:
    """Answers over the run."""
    samples, left_out = course.samples(folder)
    return {"samples": samples, "samples_left_out": left_out}


def _origin(folder: RunFolder) -> dict[str, Any]:
    """Data, recipe, lineage, and how to repeat the run."""
    data = folder.part("data")
    return {
        "data": facts(data, ("dropped", "warnings", "tokens")),
        "lengths": lengths(data),
        "lengths_columns": COLUMNS,
        "lint": lint(data),
        "settings": sorted(
            settings(folder.part("recipe"), folder.part("provenance")), key=lambda row: not row.changed
        ),
        "lineage": ancestry.tree(folder),
        "origins": [(title, facts(folder.part(name))) for title, name in ORIGINS if folder.part(name)],
        "command": command_line(folder.run.get("command")),
        "times": [(k, clean(folder.run[k])) for k in ("started", "finished") if folder.run.get(k)],
    }


def lengths(data: Record) -> list[tuple[str, list[str]]]:
    """Lengths of prompts and answers in tokens, prompts first; a dash where a count is not known."""
    parts = mapping(data.get("tokens"))
    return [
        (clean(part), [readable("", counts[name]) if name in counts else DASH for name in COLUMNS])
        for part in sorted(parts, key=lambda part: (part != "prompt", part))
        for counts in (mapping(parts[part]),)
    ]


def lint(data: Record) -> list[tuple[str, str]]:
    """Rules that left rows out, with their number, and what others found, by rule."""
    dropped = [(clean(k), f"{clean(v)} rows left out") for k, v in mapping(data.get("dropped")).items()]
    found = data.get("warnings")
    told = [mapping(one) for one in found] if isinstance(found, list) else []
    return sorted(dropped) + [(text_of(one.get("rule")), text_of(one.get("text"))) for one in told]
