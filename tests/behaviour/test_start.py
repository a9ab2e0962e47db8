"""What a command pays before it does anything."""


def test_the_compiler_is_not_imported_before_something_is_compiled(process):
    """transformers (5.23) imports torch._dynamo, and that a few modules of torch._inductor, but not the compiler."""
    assert "torch._inductor.test_operators" in process.compiler  # so the list is not empty for another reason
    assert not {"torch._inductor.compile_fx", "torch._inductor.graph"} & process.compiler
