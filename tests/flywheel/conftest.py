"""The built-in model, loaded once; and no proxy stands between a test and its own server."""

from typing import Any

import pytest

from lite_align.data.render import Renderer
from lite_align.flywheel.judges.chat_api import KEY_VARIABLE
from lite_align.model.backbone import Backbone
from lite_align.model.folder import TINY
from lite_align.model.load import load_model
from lite_align.recipe import LoraOptions, ModelOptions
from tests.flywheel.small import Made, make


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        KEY_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny() -> tuple[Backbone, Renderer]:
    """The built-in model as it is delivered, with an adapter that changes nothing."""
    options = ModelOptions.model_validate({"name": TINY, "quantization": "none", "dtype": "float32"})
    loaded = load_model(options, device="cpu")
    return Backbone(loaded, LoraOptions(rank=1), seed=0), Renderer(loaded.tokenizer, trusted=True)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Made:
    return make(tmp_path_factory.mktemp("flywheel"), tokenizer)
