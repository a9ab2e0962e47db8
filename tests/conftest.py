"""Shared fixtures: no network, one thread, and a tiny real model folder (Llama, byte-level BPE, chat template)."""

import gc
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
# The tests are about the CPU; `CUDA_VISIBLE_DEVICES=0 pytest -m gpu` runs those about CUDA.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Tests run side by side, one on each core: what they start has one thread too, and does not wait by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Bytecode is kept, also where the environment forbids it: else every fresh process compiles the whole package (0.5 s).
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

import pytest
import torch

sys.dont_write_bytecode = False

# As `load_model` does; before the first parallel operation, because threads inherit it when they are made.
torch.set_flush_denormal(True)

MOST_WORKERS = 8  # each has torch and transformers in memory


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Give every core a worker; on a GPU one alone, which has its memory to itself."""
    if os.environ["CUDA_VISIBLE_DEVICES"]:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, in their random order: one of a minute at the end would leave a core idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what imports made, which stays to the end: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders; `mktemp` would read the names of thousands before each of them."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own cache folder, so that no test sees what another one stored."""
    folder = next(caches)
    folder.mkdir()
    monkeypatch.setenv("LITE_ALIGN_CACHE", str(folder))


def make_tokenizer(template: str | None = TEMPLATE):
    """Train a small byte-level BPE tokenizer (384 tokens, ChatML markers) that encodes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [
        "the quick brown fox asks a question and the lazy dog answers: user assistant system hello world"
    ] * 30
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of `tiny_llama`."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """A folder with random fp32 weights: 2 layers, hidden 64, vocabulary 384, 512 positions, NF4-ready sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
