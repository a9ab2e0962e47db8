"""Pictures of held-out rows; the rest of what they must be stands in test_reward.py."""

from lite_align.evaluate.charts import CHARTS
from lite_align.evaluate.pictures import PICTURES


def test_pictures_belong_to_stages_that_have_curves():
    assert PICTURES.keys() <= CHARTS.keys()
