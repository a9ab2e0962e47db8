"""Gates of a command: the file, the exit code, and what a person sees."""

import io
import json
import math
from pathlib import Path

from lite_align.evaluate import gates
from lite_align.evaluate.figures import Figure
from lite_align.flywheel import gating
from lite_align.view import View

FIGURES = {"win_rate": Figure(0.6, 0.56, 0.64, 300, "share"), "kl": Figure(2.0, -math.inf, math.inf, 1)}


def settled(folder: Path, *texts: str) -> tuple[int, str]:
    out = io.StringIO()
    code = gating.exit_code(
        gating.settle([gates.parse(text) for text in texts], FIGURES, folder, View(file=out))
    )
    return code, out.getvalue()


def test_a_pass_is_0_and_everything_else_3(tmp_path: Path) -> None:
    assert settled(tmp_path, "win_rate>=0.55")[0] == 0
    assert settled(tmp_path, "win_rate>=0.7")[0] == 3
    assert settled(tmp_path, "win_rate>=0.55", "win_rate>=0.6")[0] == 3


def test_the_file_holds_every_gate_and_no_infinity(tmp_path: Path) -> None:
    _, shown = settled(tmp_path, "win_rate>=0.55", "kl<=20", "alpha>=0.4")
    record = json.loads((tmp_path / gating.FILE).read_text(), parse_constant=lambda text: 1 / 0)
    assert [one["verdict"] for one in record["gates"]] == [
        "passed",
        "too little evidence",
        "too little evidence",
    ]
    assert [one["value"] for one in record["gates"]] == [0.6, 2.0, None]
    assert record["gates"][1]["low"] is None
    assert "2 too little evidence: not passed." in shown
