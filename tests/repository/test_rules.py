"""Rules of the repository that a reader may rely on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import readme

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lite_align"
MODULES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 600, 75  # guidance is 450 and 60; these are the walls


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno}
    assert not {f: n for f, n in long.items() if n > FUNCTION_LINES}


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.name not in ("__init__.py", "__main__.py")], ids=name
)
def test_every_module_has_its_mirror_in_the_tests(path):
    inside = path.relative_to(PACKAGE)
    package_test = ROOT / "tests" / inside.parent.parent / f"test_{inside.parent.name}.py"
    mirrors = [ROOT / "tests" / inside.parent / f"test_{inside.stem}.py", package_test]
    assert any(mirror.exists() for mirror in mirrors), f"expected {name(mirrors[0])}"


def test_no_pickle_and_no_remote_code():
    forbidden = re.compile(
        r"\bimport pickle\b|\btorch\.load\(|\btorch\.save\(|\bjoblib\b|trust_remote_code\s*=\s*True"
    )
    found = [name(path) for path in MODULES if forbidden.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_no_module_is_called_utils():
    assert not [name(path) for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "from lite_align.cli import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'bitsandbytes', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_shows_the_two_commands_first():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = readme.index("pip install -e . && lite-align dpo data_samples/preferences.jsonl")
    second = readme.index("pip install -e '.[dev]' && pytest")
    assert first < second < 1200


@pytest.mark.parametrize("part", readme.PARTS)
def test_generated_parts_of_the_readme_are_current(part):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    inside = text.partition(f"<!-- {part} -->\n")[2].partition(f"<!-- end of {part} -->")[0]
    assert inside == readme.PARTS[part](), "run: python -m benchmarks.readme"
