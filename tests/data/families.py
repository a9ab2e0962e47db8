"""Tokenizers that the tests build themselves, and our own templates in the shape of nine families."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "templates"
TEXT = ["the quick brown fox asks a question and the lazy dog answers: user assistant system hello world\n\n"]

# Special tokens beside BOS, EOS and padding; then added tokens that are not special.
FAMILIES: dict[str, tuple[list[str], list[str]]] = {
    "chatml": (["<|im_start|>", "<|im_end|>"], []),
    "headers": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], []),
    "inst": ([], ["[INST]", "[/INST]"]),
    "turns": (["<start_of_turn>", "<end_of_turn>"], ["\n\n", "<table>"]),
    "phi": (["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], []),
    "zephyr": ([], []),
    "thinking": (
        ["<|im_start|>", "<|im_end|>"],
        ["<think>", "</think>", "<tool_response>", "</tool_response>", "<tool_call>"],
    ),
    "generation": (["<|im_start|>", "<|im_end|>"], []),
    "bars": (
        ["<｜end▁of▁sentence｜>"],
        ["<｜User｜>", "<｜Assistant｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"],
    ),
}


def template(family: str) -> str:
    return (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")


def _finish(backend: Tokenizer, source: str | None, special: list[str], added: list[str], eos: str):
    strip = source is not None and "<|end|>" in source  # Phi's tokens swallow the white space after them
    backend.add_special_tokens([AddedToken(text, special=True, rstrip=strip) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = source
    return fast


def byte_level(source: str | None, special: list[str], added: list[str], eos: str = "</s>"):
    """A byte-level BPE tokenizer whose pad is its EOS, which merges the bytes of a few words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 30, trainer)
    return _finish(backend, source, special, added, eos)


def metaspace(source: str | None, special: list[str], added: list[str], *, legacy: bool):
    """A SentencePiece-like Unigram tokenizer; `legacy` puts a blank before every stretch of text, as Llama 2 does.

    `</s>` is in its vocabulary with the best score, so that plain text alone would make the EOS token.
    """
    words = {word for line in TEXT for word in line.split()}
    pieces = [("<unk>", 0.0), ("<s>", -20.0), ("</s>", -0.1), ("▁", -3.0), ("\n", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in sorted(words)] + [(word, -5.0) for word in sorted(words)]
    pieces += [(chr(code), -9.0) for code in range(33, 127)]
    backend = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=0, byte_fallback=False))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return _finish(backend, source, special, added, "</s>")


def tokenizer(family: str):
    """The byte-level tokenizer of a family, with its template."""
    special, added = FAMILIES[family]
    return byte_level(
        template(family), special, added, "<｜end▁of▁sentence｜>" if family == "bars" else "</s>"
    )
