"""bitsandbytes without the compiler: what is decorated while it is imported is compiled at its first call."""

import importlib
import logging

import pytest
import torch

from lite_align.model.bits import compiled_at_first_call


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What `torch.compile` was called with; what it gives back adds 100 to the result."""
    calls: list[object] = []

    def record(model=None, **options):
        if not callable(model):
            return lambda function: record(function, **options)
        calls.append((model, options))
        return lambda *args, **keywords: 100 + model(*args, **keywords)

    monkeypatch.setattr(torch, "compile", record)
    return calls


def test_a_function_is_compiled_once_when_it_is_first_called(compiled):
    def double(x: int, *, plus: int = 0) -> int:
        """Twice."""
        return 2 * x + plus

    with compiled_at_first_call():
        bare, with_options = torch.compile(double), torch.compile(dynamic=False)(double)
    assert compiled == []
    assert bare.__doc__ == "Twice."
    assert [bare(1), bare(2, plus=1)] == [102, 105]
    assert compiled == [(double, {})]
    assert with_options(3) == 106
    assert compiled == [(double, {}), (double, {"dynamic": False})]


def test_in_a_graph_it_is_the_function_itself(compiled, monkeypatch):
    with compiled_at_first_call():
        double = torch.compile(lambda x: 2 * x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert double(1) == 2
    assert compiled == []


def test_modules_are_compiled_at_once(compiled):
    layer = torch.nn.Linear(1, 1)
    with compiled_at_first_call():
        torch.compile(layer)
    assert compiled == [(layer, {})]


def test_everything_after_the_block_is_compiled_as_ever():
    original = torch.compile
    with pytest.raises(ModuleNotFoundError), compiled_at_first_call():
        importlib.import_module("no_such_library")
    assert torch.compile is original


def test_the_real_compiler_takes_it_as_one_graph():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with compiled_at_first_call():
        inner = torch.compile(lambda x: x.sin() + 1, backend=backend)
    outer = torch.compile(lambda x: inner(x) * 2, backend=backend, fullgraph=True)
    x = torch.arange(3.0)
    assert torch.equal(outer(x), (x.sin() + 1) * 2)
    assert len(graphs) == 1
    assert torch.equal(inner(x), x.sin() + 1)
    assert len(graphs) == 2


def test_only_two_messages_of_bitsandbytes_are_dropped(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", torch.float32)
    logger.warning("something else")
    assert caplog.messages == ["something else"]
