"""Several runs on one page."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.evaluate.folder import read
from lite_align.evaluate.pages import side_by_side
from lite_align.evaluate.pages.side_by_side import answers, differing, file_name, names, notes, render, write
from tests.evaluate import evaluated
from tests.evaluate.conftest import ANSWERS, RECIPE

Builder = Callable[..., Path]


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.replace("\u00a0", " ")).split())


@pytest.fixture
def two(build: Builder) -> list[Path]:
    """Two dpo runs that differ in beta and in an answer."""
    one = build("low", gain=0.2)
    recipe = {**RECIPE, "loss": {**RECIPE["loss"], "beta": 0.9}}
    two = build(
        "high",
        gain=0.9,
        run={"recipe": recipe},
        answers=lambda rows: [{**rows[0], "after": rows[0]["after"] + " Not on Sunday."}, *rows[1:]],
    )
    for folder in (one, two):
        evaluated.put(folder, eval=evaluated.evaluation(), gates=evaluated.gates())
    return [one, two]


def test_verdicts_figures_curves_answers_and_differences_are_side_by_side(
    two: list[Path], tmp_path: Path
) -> None:
    path = write(two, tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    text = text_of(page)
    assert text.count("Held-out accuracy") >= 2
    for part in ("A low", "B high", "FAILED kl &lt;=1", "loss. beta 0.3 0.9", "Not on Sunday."):
        assert part in text, part
    assert "<ins>Not on Sunday.</ins>" in page
    assert text.count("as A") == len(ANSWERS) - 1
    headings = re.findall(r"<h2 id[^>]*>(.*?)</h2>", page)
    assert headings == [
        "Figures",
        "By category",
        "Evaluation",
        "Curves",
        "Answers to the same prompts",
        "What differs",
    ]
    assert "://" not in page
    assert write(two, path).read_text(encoding="utf-8") == page


def test_what_cannot_be_compared_is_said(build: Builder, build_policy: Builder) -> None:
    runs = [read(build("a")), read(build("b", held_out=40)), read(build_policy("c"))]
    stages, rows = notes(runs)
    assert stages.startswith("The runs are of different stages")
    assert "A and B, C each by themselves" in stages
    assert "held-out rows are not the same" in rows
    assert notes([read(build("d")), read(build("e"))]) == []


def test_names_have_as_much_of_the_path_as_tells_them_apart(build: Builder, tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        build(f"{place}/dpo")
    folders = [read(tmp_path / place / "dpo") for place in ("one", "two")]
    assert names(folders) == ["one/dpo", "two/dpo"]
    assert names([*folders, read(build("sft"))]) == ["one/dpo", "two/dpo", "sft"]
    assert file_name(names(folders)) == "report-one-dpo-vs-two-dpo.html"
    assert file_name(["../../etc", "<b>", "..."]) == "report-etc-vs-b-vs-run.html"
    assert len(file_name(["x" * 400, "y"])) < 200


def test_the_default_page_is_in_the_current_folder(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert write(two) == Path("report-low-vs-high.html")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["report-low-vs-high.html"]


def test_a_run_twice_and_too_many_runs_are_refused(build: Builder, tmp_path: Path) -> None:
    folder = build()
    with pytest.raises(UserError, match="given twice"):
        write([folder, tmp_path / "." / folder.name])
    with pytest.raises(UserError, match="7 runs"):
        write([tmp_path / str(number) for number in range(7)])


def test_answers_are_matched_by_prompt_and_what_is_alone_is_counted(build: Builder) -> None:
    def rows(*prompts: str, after: str = "x y z") -> list[dict]:
        return [{"prompt": prompt, "before": "x", "after": after, "after_tokens": 3} for prompt in prompts]

    runs = [
        read(build("a", answers=rows("p", "q", "p"))),
        read(build("b", answers=rows("p", "p", "r", after="x y"))),
    ]
    shown, left_out = answers(runs)
    assert [one.prompt for one in shown] == ["p", "p"]
    assert [side.title for side in shown[0].sides] == ["Before", "A", "B"]
    assert left_out == "2 prompts were answered by one run alone, and are in its own report"
    other = read(build("c", answers=[{"prompt": "p", "before": "other", "after": "x y z"}]))
    (one,) = answers([runs[0], other])[0]
    assert [(side.title, side.note) for side in one.sides] == [("A", "3 tokens"), ("B", "as A")]


def test_only_differences_are_shown(two: list[Path]) -> None:
    folders = [read(path) for path in two]
    assert differing(folders) == [("loss.beta", ["0.3", "0.9"])]
    assert differing([folders[0], folders[0]]) == []
    lost = json.loads((two[0] / "run.json").read_text())
    del lost["recipe"]["lora"]
    lost["data"]["tokens"] = {"prompt": {"median": 3}}  # follows from the rows, which are told apart by hash
    (two[0] / "run.json").write_text(json.dumps(lost))
    found = dict(differing([read(path) for path in two]))
    assert found["lora.rank"] == ["–", "16"]
    assert not [key for key in found if "tokens" in key]


def test_runs_without_anything_measured_still_have_a_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    page = render([read(tmp_path / name) for name in ("a", "b")])
    assert "no evidence either way" in page
    assert side_by_side.categories([]) is None
