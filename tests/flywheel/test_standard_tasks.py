"""Standard tasks: what lm-eval counts of the base in memory is what our own log-probs say, before and after."""

import sys
from pathlib import Path
from typing import Any

import pytest

from lite_align import cli
from lite_align.data.types import Leaf, Tree
from lite_align.errors import UserError
from lite_align.flywheel import sides, standard_tasks
from lite_align.flywheel.bench import Bench
from lite_align.flywheel.standard_tasks import Tasks
from lite_align.model.backbone import Role
from lite_align.stages.speaker import Sampling
from lite_align.view import View
from tests import finished
from tests.flywheel.small import WORDS, Made, lines

TASK = """task: small_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROWS = [
    {"question": f"{words} {n}", "choices": ["hello", "world", "fox"], "answer": n % 3}
    for n in range(4)
    for words in WORDS
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = lines(tmp_path / "rows.jsonl", ROWS)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "small_choice.yaml").write_text(TASK.format(rows=rows))
    return Tasks(("small_choice",), None, folder)


@pytest.fixture
def bench(made: Made) -> Bench:
    side = sides.find(str(made.second))
    found = Bench(sides.common_base([side]), [side], Sampling(1.0, 1.0, 8, 0), View(quiet=True))
    found.put(side.reference, Role.REFERENCE)
    found.put(side, Role.POLICY)
    finished.move(found.backbone, Role.POLICY, 2.0)  # so that it answers otherwise
    return found


def right(bench: Bench, role: Role) -> list[float]:
    """1 for each row whose right answer is the likeliest, by packed passes over trees."""

    def encode(text: str) -> list[int]:
        return bench.renderer.tokenizer(text, add_special_tokens=True)["input_ids"]

    found = []
    for row in ROWS:
        root = encode(row["question"])
        wholes = [encode(f"{row['question']} {choice}") for choice in row["choices"]]
        leaves = [Leaf(tuple(whole[len(root) :]), (True,) * (len(whole) - len(root))) for whole in wholes]
        tree = Tree(0, tuple(root), (False,) * len(root), tuple(leaves))
        (logps,) = bench.logps(role, [tree])
        found.append(float(max(range(3), key=logps.__getitem__) == row["answer"]))
    return found


@pytest.mark.filterwarnings("ignore")  # of lm-eval and of what it imports
def test_the_harness_counts_what_our_log_probs_say(bench: Bench, tasks: Tasks) -> None:
    pytest.importorskip("lm_eval")
    found = standard_tasks.measure(tasks, bench)["small_choice.acc"]
    before, after = right(bench, Role.REFERENCE), right(bench, Role.POLICY)
    assert before != after
    assert found.value == pytest.approx(sum(after) / len(ROWS))
    assert found.before == pytest.approx(sum(before) / len(ROWS))
    assert found.count == len(ROWS)
    assert found.unit == "share"


@pytest.mark.filterwarnings("ignore")
def test_unknown_tasks_are_told(bench: Bench, tasks: Tasks) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match="no task small_choise"):
        standard_tasks.measure(Tasks(("small_choise",), None, tasks.folder), bench)


def test_without_the_library_it_is_told_before_anything_is_loaded(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.run(["eval", str(made.first), "--out", str(tmp_path), "--tasks", "piqa"]) == 2
    assert "pip install 'lite-align[lm-eval]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
