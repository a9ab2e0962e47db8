"""Recipes: strict YAML, all mistakes at once, provenance, and the files in recipes/."""

import time
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lite_align.errors import RecipeError
from lite_align.recipe import (
    STAGES,
    DPORecipe,
    LoraOptions,
    ModelOptions,
    SFTRecipe,
    document,
    drift_classes,
    dump,
    fill_options,
    flatten,
    from_dict,
    is_loop,
    is_pipeline,
    keys,
    load,
    load_pipeline,
    memory_levers,
    nearest,
    resolve_auto,
    size_defaults,
    stage_of,
    to_dict,
    unusual,
)
from lite_align.recipe.keys import SCHEMAS, comment, yaml_value
from lite_align.recipe.secrets import redact
from lite_align.recipe.yaml import read, scalar

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def problems(text: str) -> list[str]:
    return [f"{problem.line}: {problem.text}" for problem in read(text.encode()).problems]


def mistakes(**arguments) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load("dpo", **arguments)
    return list(caught.value.details) or [caught.value.what]


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e7", 5e7),
        ("1.10", 1.1),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-7", -7),
        ("no", "no"),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("0b1", "0b1"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_are_text():
    assert read(b"""a: '1'\nb: "no"\nc: |\n  7\n""").value == {"a": "1", "b": "no", "c": "7\n"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "3: sets a again; line 1 sets it too"),
        ("a:\n  b: 1\n  b: 2", "3: sets a.b again; line 2 sets it too"),
        ("a: &x 1", "1: has the anchor &x; recipes have no anchors and aliases"),
        ("a: *x", "1: has the alias *x; write the value out"),
        ("a: !!str 1", "1: has the tag tag:yaml.org,2002:str; recipes have no tags"),
        ("a: 1\n---\nb: 2", "2: starts a second document; a recipe is one"),
        ("? [a]\n: 1", "1: has a list, mapping or alias as a key; keys are words"),
        ("a: [" + "[" * 40, "1: is nested deeper than 16 levels"),
        ("a: 'x", "1: is not YAML: found unexpected end of stream"),
        ("a:\n\t- 1", "2: is not YAML: found character '\\t' that cannot start any token"),
        ("a: \x07", "1: has a control character"),
    ],
)
def test_yaml_traps_are_problems_with_their_line(text, problem):
    assert problem in problems(text)


def test_what_is_not_utf_8_or_too_large_is_refused():
    assert read(b"a: 1\nb: \xff").problems[0].line == 2
    assert "256 KiB" in read(b"#" * (256 * 1024 + 1)).problems[0].text
    assert read("a: é".encode("utf-16")).problems


def test_an_alias_bomb_is_refused_at_once():
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{n}: &{n} [" + ",".join([f"*{p}"] * 9) + "]" for p, n in zip("abcdefgh", "bcdefghi")]
    started = time.process_time()
    found = problems("\n".join(lines))
    assert time.process_time() - started < 0.05
    assert any("alias" in line for line in found)


# Loading


def test_every_value_has_its_provenance(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("stage: dpo\nloss:\n  beta: 0.3\ntrain:\n  epochs: 2\n")
    resolved = load(
        "dpo",
        data="rows.jsonl",
        recipe_file=file,
        flags={"model.name": "tiny", "train.seed": None},
        sets=["train.learning_rate=1e-3", "lora.targets=[q_proj, v_proj]", "loss.options.margin=0.5"],
    )
    recipe, origin = resolved.recipe, resolved.provenance
    assert (recipe.loss.beta, recipe.train.learning_rate, recipe.model.name) == (0.3, 0.001, "tiny")
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert recipe.loss.options == {"margin": 0.5}
    assert origin["loss.beta"] == "recipe mine.yaml:3"
    assert origin["data.path"] == "DATA"
    assert origin["model.name"] == "--model"
    assert origin["train.learning_rate"] == "--set"
    assert origin["train.seed"] == "default"
    assert set(origin) == set(keys("dpo"))


def test_all_mistakes_are_told_at_once(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("loss:\n  bata: 1\n  beta: no\nlora:\n  rank: 0\ntrain: 3\ndata:\n  max_dropped: 5\n")
    found = mistakes(recipe_file=file, sets=["train.lr=3", "oops"], flags={"train.seed": -1})
    assert found == [
        f"{file}:2: loss.bata is not a setting of dpo. Did you mean loss.beta?",
        f'{file}:3: loss.beta is "no"; expected a number above 0 or auto',
        f"{file}:5: lora.rank is 0; expected a whole number above 0 up to 1024",
        f"{file}:6: train is a group of settings, such as train.learning_rate, not a value",
        f"{file}:8: data.max_dropped is 5; expected a number from 0 up to 1",
        "train.lr is not a setting of dpo. Did you mean train.learning_rate?",
        "--set oops: key=value expected, such as --set loss.beta=0.3",
        "--seed: train.seed is -1; expected a whole number from 0 below 4294967296",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "loss.beta=0",
        "loss.beta=.inf",
        "loss.beta=.nan",
        "loss.beta=1e999",
        "loss.label_smoothing=0.5",
        "loss.label_smoothing=-0.1",
        "loss.sft_weight=-1",
        "lora.rank=16.5",
        'lora.rank="16"',
        "lora.rank=true",
        "lora.targets=q_proj",
        "lora.targets=[]",
        "model.quantization=fp4",
        "model.name=7",
        "train.epochs=0",
        "data.held_out=1",
        "loss.options.margin=x",
        "model={name: tiny}",
    ],
)
def test_values_that_do_not_fit_are_refused(text):
    (line,) = mistakes(sets=[text])
    assert text.partition("=")[0].split(".")[0] in line


def test_dropout_is_refused_with_the_reason_where_there_is_a_reference():
    assert "policy would differ from its reference" in mistakes(sets=["lora.dropout=0.1"])[0]
    assert load("sft", sets=["lora.dropout=0.1"]).recipe.lora.dropout == 0.1
    with pytest.raises(ValidationError):
        DPORecipe(lora=LoraOptions(dropout=0.1))


def test_one_setting_has_one_source():
    found = mistakes(flags={"model.name": "a"}, sets=["model.name=b", "loss.beta=1", "loss.beta=2"])
    assert found == [
        "model.name is given twice, by --model and by --set",
        "loss.beta is given twice, by --set and by --set",
    ]


def test_secrets_are_refused_without_repeating_them():
    token = "hf_" + "a" * 30
    for text in (f"model.name={token}", "data.path=https://me:secret123@host/x"):
        (line,) = mistakes(sets=[text])
        assert "access token or a password" in line
        assert token not in line
        assert "secret123" not in line
    assert token not in redact(f"x {token} y")
    assert "secret123" not in redact("GET https://me:secret123@host/x")


def test_a_recipe_is_for_one_stage(tmp_path):
    file = tmp_path / "sft.yaml"
    file.write_text("stage: sft\n")
    assert "is a recipe for sft, not for dpo" in mistakes(recipe_file=file)[0]
    assert stage_of(file) == "sft"
    for text in ("loss:\n  beta: 1\n", "stage: nope\n", "- 1\n", "stage: [dpo]\n"):
        file.write_text(text)
        with pytest.raises(RecipeError, match="stage"):
            stage_of(file)
    with pytest.raises(RecipeError, match="does not exist"):
        stage_of(tmp_path / "none.yaml")
    assert "does not exist" in mistakes(recipe_file=tmp_path / "none.yaml")[0]


def test_an_empty_block_or_file_means_the_defaults(tmp_path):
    file = tmp_path / "r.yaml"
    for text in ("", "# nothing\n", "stage: dpo\nloss:\n  # beta: 1\n"):
        file.write_text(text)
        assert load("dpo", recipe_file=file).recipe == DPORecipe()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("loss.bata", "loss.beta"),
        ("beta", "loss.beta"),
        ("loss.alpha", "lora.alpha"),
        ("lora_r", "lora.rank"),
        ("train.lr", "train.learning_rate"),
        ("train.batchsize", "train.batch_size"),
        ("per_device_train_batch_size", "train.batch_size"),
        ("zzz", None),
    ],
)
def test_the_nearest_setting_is_named(wrong, right):
    assert nearest("dpo", wrong) == right


# Resolved recipes


def test_auto_is_filled_once_and_choices_of_people_stay():
    resolved = load("dpo", sets=["train.learning_rate=1e-4"])
    for key, value in size_defaults("dpo", int(1.5e9)).items():
        resolved = resolve_auto(resolved, key, value, "1.5 B parameters")
    assert resolved.recipe.loss.beta == 0.1
    assert resolved.recipe.train.learning_rate == 1e-4
    assert resolved.provenance["loss.beta"] == "auto: 1.5 B parameters"
    assert resolved.provenance["train.learning_rate"] == "--set"
    assert resolve_auto(resolved, "loss.beta", 0.5, "later") == resolved


def test_whole_numbers_become_floats_where_a_float_is_meant():
    recipe = load("dpo", sets=["loss.beta=1", "train.epochs=2", "lora.alpha=8"]).recipe
    assert all(isinstance(v, float) for v in (recipe.loss.beta, recipe.train.epochs, recipe.lora.alpha))


@pytest.mark.parametrize(
    ("parameters", "rate", "beta"),
    [
        (8_000_000_000, 5e-6, 0.1),
        (1_500_000_000, 1e-5, 0.1),
        (500_000_000, 2e-5, 0.3),
        (4_000_000, 1e-3, 1.0),
    ],
)
def test_size_defaults(parameters, rate, beta):
    assert size_defaults("dpo", parameters) == {"train.learning_rate": rate, "loss.beta": beta}
    recipe = load("dpo", sets=[f"train.learning_rate={rate}", f"loss.beta={beta}"]).recipe
    assert unusual(recipe, parameters) == []


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("train.learning_rate=2e-4", "value for sft"),
        ("train.learning_rate=1e-9", "hardly moves"),
        ("loss.beta=0.001", "unusual"),
        ("train.batch_size=2", "small"),
        ("train.batch_size=512", "large"),
        ("train.epochs=9", "memorised"),
        ("train.warmup=0.9", "low for most"),
        ("lora.alpha=256", "lora.alpha / lora.rank is 16"),
    ],
)
def test_la702_warns_of_values_that_are_seldom_meant(setting, word):
    (line,) = unusual(load("dpo", sets=[setting]).recipe, 1_500_000_000)
    assert line.startswith("LA702 ")
    assert word in line


def test_recipes_are_frozen_and_survive_json():
    recipe = load("dpo", sets=["data.accept=[LA305]", "data.map={chosen: good}"]).recipe
    with pytest.raises(ValidationError):
        recipe.loss.beta = 1.0
    assert from_dict(to_dict(recipe)) == recipe
    assert set(flatten(to_dict(recipe))) == set(keys("dpo"))
    assert from_dict(to_dict(SFTRecipe())) == SFTRecipe()
    with pytest.raises(RecipeError):
        from_dict({"stage": "dpo", "loss": {"old": 1}})


def test_drift_classes_are_those_of_the_resume_contract():
    classes = drift_classes("dpo")
    refused = ("model.name", "model.dtype", "data.max_length", "loss.name", "loss.beta", "lora.rank")
    assert {classes[key] for key in (*refused, "train.batch_size", "train.seed")} == {"refuse"}
    assert {classes[f"train.{key}"] for key in ("learning_rate", "schedule", "max_steps", "epochs")} == {
        "ask"
    }
    assert {classes[f"train.{key}"] for key in ("log_steps", "eval_steps", "save_steps")} == {"free"}
    assert set(classes.values()) == {"refuse", "ask", "free"}


@given(st.text(max_size=40))
def test_any_text_survives_our_yaml(text):
    found = read(f"a: {yaml_value(text)}\nb: [{yaml_value(text)}]".encode("utf-8", "surrogatepass"))
    assert not found.problems
    assert found.value == {"a": text, "b": [text]}


@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
        st.integers(),
        st.booleans(),
        st.none(),
    )
)
def test_any_number_survives_our_yaml(value):
    assert read(f"a: {yaml_value(value)}".encode()).value in ({"a": value}, {"a": str(value)})


def test_dump_is_a_recipe_again(tmp_path):
    resolved = load("dpo", data="päth with: odd # signs.jsonl", sets=["loss.beta=0.25"])
    file = tmp_path / "again.yaml"
    file.write_text(dump(resolved), encoding="utf-8")
    assert load("dpo", recipe_file=file).recipe == resolved.recipe
    assert "beta: 0.25  # --set" in dump(resolved)


def test_entries_of_a_mapping_are_filled_where_none_was_chosen():
    values = {"desirable_weight": 2.0, "undesirable_weight": 1.0}
    filled = fill_options(load("dpo"), "loss.options", values, "3 up, 6 down")
    assert filled.recipe.loss.options == values
    assert filled.provenance["loss.options"] == "auto: 3 up, 6 down"
    other = fill_options(load("dpo", sets=["loss.options.margin=0.5"]), "loss.options", values, "reason")
    assert other.recipe.loss.options == {"margin": 0.5, **values}
    assert other.provenance["loss.options"] == "--set, auto: reason"
    chosen = load("dpo", sets=["loss.options.desirable_weight=3"])
    assert fill_options(chosen, "loss.options", values, "reason") == chosen


# recipes/


def test_the_complete_recipes_are_the_schema():
    for stage in STAGES:
        assert load(stage, recipe_file=RECIPES / f"{stage}.yaml").recipe == STAGES[stage]()
    for stage in SCHEMAS:
        text = (RECIPES / f"{stage}.yaml").read_text(encoding="utf-8")
        assert text.endswith(document(stage))
        assert max(map(len, text.splitlines())) <= 110


def test_every_recipe_file_loads_with_the_help_of_the_schema_as_comments():
    files = [f for f in sorted(RECIPES.rglob("*.y*ml")) if not is_pipeline(f) and not is_loop(f)]
    assert len(files) == 12
    for file in files:
        stage = stage_of(file)
        resolved = load(stage, recipe_file=file)
        lines = file.read_text(encoding="utf-8").splitlines()
        for key, origin in resolved.provenance.items():
            if origin != "default":
                line = int(origin.rpartition(":")[2])
                assert lines[line - 2].strip() == comment(keys(stage)[key])


def test_sized_recipes_say_that_their_memory_is_calculated():
    for stage, size in product(("sft", "dpo"), (8, 12, 16, 24)):
        file = RECIPES / f"{stage}-{size}gb.yaml"
        recipe = load(stage, recipe_file=file).recipe
        assert "calculated, not measured" in file.read_text(encoding="utf-8")
        assert recipe.model.quantization == "nf4"
        assert recipe.train.tokens_per_microbatch == recipe.model.gradient_checkpointing == "auto"


def test_every_pipeline_loads():
    files = [file for file in sorted(RECIPES.rglob("*.y*ml")) if is_pipeline(file)]
    assert [file.name for file in files] == [
        *(f"pipeline-{n}gb.yaml" for n in (12, 16, 24, 8)),
        *(f"pipeline-ppo-{n}gb.yaml" for n in (12, 16, 24, 8)),
        "pipeline_ppo_tiny.yaml",
        "pipeline_tiny.yaml",
    ]
    for file in files:
        found = load_pipeline(file)
        policies = (
            [("dpo", "sft", None)]
            if "ppo" not in file.stem
            else [("ppo", "sft", "reward"), ("rloo", "sft", "reward")]
        )
        told = [(step.name, step.start, step.reward) for step in found.steps]
        assert told[:2] == [("sft", None, None), ("reward", "sft", None)]
        assert told[2:] == policies[: len(told) - 2] != []
        sized = file.stem.endswith("gb")
        assert {step.resolved.recipe.model.quantization for step in found.steps} == {
            "nf4" if sized else "auto"
        }
        assert ("calculated, not measured" in file.read_text(encoding="utf-8")) == sized


def test_every_setting_has_help_and_a_drift_class():
    for stage in SCHEMAS:
        for key in keys(stage).values():
            assert key.help.endswith((".", ";"))
            assert key.expected
    assert ModelOptions().name == "auto"


def test_levers_for_memory_are_those_that_are_left():
    def levers(*sets: str) -> list[str]:
        return memory_levers(load("dpo", sets=list(sets)).recipe)

    assert levers("data.max_length=1024") == [
        "model.gradient_checkpointing=on",
        "a lower data.max_length (now 1,024)",
        "model.quantization=nf4",
    ]
    assert levers("model.gradient_checkpointing=on", "model.quantization=nf4", "lora.rank=64") == [
        "a lower data.max_length",
        "a lower lora.rank (now 64)",
        "a smaller model",
    ]
    assert (
        levers("model.gradient_checkpointing=12", "model.quantization=nf4")[0]
        == "model.gradient_checkpointing=on"
    )


def test_unusual_settings_of_ppo():
    def told(*sets: str) -> str:
        return "\n".join(unusual(load("ppo", sets=list(sets)).recipe))

    assert told("train.epochs=6") == ""  # answers are new each time
    assert "another policy" in told("ppo.top_p=0.9")
    assert "another policy" in told("ppo.top_k=20")
    assert told("ppo.kl=0") == ""
    assert "nothing keeps the policy" in told("ppo.kl=0", "guards.enabled=false")
    assert "most tokens will be clipped" in told("ppo.passes=8")
