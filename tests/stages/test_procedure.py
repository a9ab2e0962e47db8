"""What every training verb promises to the skeleton that drives it."""

from lite_align.data import formats
from lite_align.evaluate.verdict import JUDGES
from lite_align.recipe import CONTINUES, STAGES, TRAINS, load
from lite_align.stages.training import PROCEDURES


def test_every_verb_has_a_recipe_a_judge_and_rows_of_a_known_kind():
    for name, procedure in PROCEDURES.items():
        recipe = load(name).recipe
        assert name == procedure.stage == recipe.stage
        assert name in STAGES
        assert name in JUDGES
        assert name in CONTINUES
        assert TRAINS[name] == procedure.role.value
        kind = procedure.kind(recipe)
        assert kind.wanted in {entry.kind for entry in formats.FORMATS.values()}
        assert kind.noun.endswith("s")
