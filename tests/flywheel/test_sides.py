"""Names of models: what they are, which base they share, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.flywheel import sides
from lite_align.model.backbone import adapter_digest
from tests.flywheel.small import Made
from tests.stages.test_scorer import reward_run


def changed(run: Path, folder: Path, change) -> Path:
    """A copy of a run with another record."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_the_base_a_run_its_adapter_and_an_adapter_alone(made: Made) -> None:
    assert sides.find("base") == sides.Side("base")
    run, inside, alone = (
        sides.find(str(path)) for path in (made.first, made.first / "adapters" / "policy", made.adapter)
    )
    digest = adapter_digest(made.adapter)
    assert run.sha256 == inside.sha256 == alone.sha256 == digest
    assert run.run is not None
    assert inside.run is not None
    assert alone.run is None
    assert run.reference == sides.Side("base")
    twin = sides.find(str(made.same))
    assert twin.reference.sha256 == twin.sha256


def test_the_base_is_stored_as_the_runs_had_it(made: Made) -> None:
    found = [sides.find(name) for name in ("base", str(made.first), str(made.adapter))]
    base = sides.common_base(found)
    assert (base.name, base.quantization, base.dtype) == (str(made.base), "none", "float32")
    alone = sides.common_base(found[2:])
    assert alone.name == str(made.base)
    assert sides.common_base(found[:1], str(made.base)).name == str(made.base)


def test_nothing_says_which_base(made: Made) -> None:
    with pytest.raises(UserError, match="which base"):
        sides.common_base([sides.Side("base")])


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="There is no nowhere|is no run folder and no adapter"):
        sides.find(name)


def test_a_run_that_is_not_finished_is_refused(made: Made, tmp_path: Path) -> None:
    run = changed(made.first, tmp_path / "run", lambda record: record.update(status="failed"))
    with pytest.raises(UserError, match="not finished"):
        sides.find(str(run))


def test_a_reward_run_is_refused(made: Made, tmp_path: Path) -> None:
    run = changed(made.first, tmp_path / "run", lambda record: record.update(stage="reward"))
    (run / "adapters" / "policy").rename(run / "adapters" / "reward")
    with pytest.raises(UserError, match="scores answers"):
        sides.find(str(run))


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("recipe", "dtype", "bfloat16"),
        ("recipe", "quantization", "int8"),
        ("recipe", "name", "another/base"),
        ("hashes", "base", "0" * 12),
    ],
)
def test_other_bases_are_refused_with_both_named(
    block: str, key: str, value: str, made: Made, tmp_path: Path
) -> None:
    def change(record: dict) -> None:
        (record["recipe"]["model"] if block == "recipe" else record["hashes"])[key] = value

    other = changed(made.first, tmp_path / "other", change)
    with pytest.raises(UserError, match="different bases") as caught:
        sides.common_base([sides.find(str(made.second)), sides.find(str(other))])
    known, changed_to = caught.value.details
    assert str(made.second) in known
    assert str(other) in changed_to
    assert value in changed_to
    assert value not in known


def test_an_adapter_of_another_base_is_refused(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.adapter, tmp_path / "other")
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "another/base"
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="belongs to the base another/base"):
        sides.common_base([sides.find(str(made.first)), sides.find(str(tmp_path / "other"))])


def test_a_named_base_that_the_runs_do_not_have_is_refused(made: Made) -> None:
    run = sides.find(str(made.first))
    assert sides.common_base([run], str(made.base)).name == str(made.base)
    with pytest.raises(UserError, match="not on another/base"):
        sides.common_base([run], "another/base")


def test_an_adapter_that_names_no_base_takes_the_one_that_is_given(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.adapter, tmp_path / "nameless")
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (tmp_path / "nameless" / "adapter_config.json").write_text(json.dumps(config))
    nameless = sides.find(str(tmp_path / "nameless"))
    assert nameless.model is None
    assert sides.common_base([nameless, sides.find(str(made.first))]).name == str(made.base)
    assert sides.common_base([nameless], str(made.base)).name == str(made.base)
    with pytest.raises(UserError, match="which base"):
        sides.common_base([nameless])


def test_an_adapter_that_scores_is_no_side(made: Made, tmp_path: Path) -> None:
    run, _ = reward_run(tmp_path / "reward", made.base)
    shutil.copytree(run / "adapters" / "reward", tmp_path / "alone")
    for name in (run / "adapters" / "reward", tmp_path / "alone"):
        with pytest.raises(UserError, match="scores answers and writes none"):
            sides.find(str(name))


def test_a_name_that_is_nothing_is_told_so_inside_a_run_folder_too(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.first)
    assert sides.find("adapters/policy").sha256 == sides.find(".").sha256
    with pytest.raises(UserError, match="There is no nowhere"):
        sides.find("nowhere")
