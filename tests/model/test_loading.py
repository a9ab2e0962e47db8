"""Loading in the background: the same model, errors told where it is needed, no thread left behind."""

import threading
from pathlib import Path

import pytest
import torch

from lite_align.errors import ModelError
from lite_align.model import load
from lite_align.model.loading import Loading
from lite_align.model.storage import weights_sha256
from lite_align.recipe import ModelOptions


def test_weights_are_read_in_a_thread_of_their_own(tiny_llama: Path):
    options = ModelOptions(name=str(tiny_llama), quantization="nf4")
    with Loading(options, device=torch.device("cpu")) as loading:
        pass
    assert "loading" not in {thread.name for thread in threading.enumerate()}
    beside = loading.result()
    alone = load.read(options, device="cpu")
    assert weights_sha256(beside.model) == weights_sha256(alone.model)
    assert beside.identity == alone.identity
    assert loading.result() is beside


def test_what_goes_wrong_in_the_thread_is_told_where_the_model_is_needed(tmp_path: Path):
    with Loading(ModelOptions(name=str(tmp_path / "none")), device=torch.device("cpu")) as loading:
        pass
    with pytest.raises(ModelError, match="none"):
        loading.result()


def test_the_thread_is_over_when_what_is_done_beside_it_fails(tiny_llama: Path):
    def rows_are_bad() -> None:
        with Loading(ModelOptions(name=str(tiny_llama)), device=torch.device("cpu")):
            raise ValueError("rows")

    with pytest.raises(ValueError, match="rows"):
        rows_are_bad()
    assert "loading" not in {thread.name for thread in threading.enumerate()}
