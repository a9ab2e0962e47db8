"""What is drawn, by stage: every chart has a title of its own and says how to read it."""

import pytest

from lite_align.evaluate.charts import CHARTS
from lite_align.recipe import STAGES


def test_every_stage_has_charts():
    assert CHARTS.keys() == STAGES.keys()


@pytest.mark.parametrize("stage", CHARTS)
def test_titles_and_metrics_are_unique_and_readings_are_sentences(stage: str):
    charts = CHARTS[stage]
    assert len({chart.title for chart in charts}) == len(charts)
    metrics = [line.metric for chart in charts for line in chart.lines]
    assert len(set(metrics)) == len(metrics)
    assert all(chart.reading.endswith(".") for chart in charts)
    assert all(line.held_out == line.metric.startswith("eval/") for chart in charts for line in chart.lines)
