"""The model and the rows of the benchmarks, made from a seed: no download, nothing taken from elsewhere.

A 15M-parameter Llama with random weights and a 32k byte-level BPE; prompts of about 115 and answers of about 47
tokens with log-normal lengths, as in chat preference data.
"""

import json
import random
from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
SIZES = {
    "15m": {
        "vocab_size": 32768,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "58m": {
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 14,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}


def words(generator: random.Random, count: int) -> list[str]:
    """Invented words of one to four syllables."""
    syllables = [c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s")]
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(generator.choices(syllables, k=generator.choice((1, 2, 2, 3, 3, 4))))] = None
    return list(found)


def make_model(folder: Path, size: str) -> Path:
    """Write tokenizer and random weights of `size` to a folder (kept if there already) and return it."""
    target = folder / f"llama-{size}"
    if (target / "model.safetensors").exists():
        return target
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    generator = random.Random(7)
    lexicon = words(generator, 60_000)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES[size]["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (" ".join(lexicon[i : i + 20]) for i in range(0, len(lexicon), 20)), trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[3],
        extra_special_tokens={"im_start_token": SPECIAL[2]},
        model_max_length=2048,
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(1234)
    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(target)
    fast.save_pretrained(target)
    return target


def make_rows(
    model: Path, count: int, *, prompt_tokens: float = 107, answer_tokens: float = 45
) -> list[dict]:
    """Chat pairs whose lengths are log-normal around the given means; the template adds a few tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    generator = random.Random(11)
    lexicon = words(random.Random(7), 60_000)[:20_000]

    def text(mean: float) -> str:
        length = max(4, round(generator.lognormvariate(0, 0.6) * mean / 1.197))  # exp(0.6² / 2) = 1.197
        drawn = " ".join(generator.choices(lexicon, k=length))
        return tokenizer.decode(tokenizer.encode(drawn).ids[:length])

    return [
        {
            "prompt": [{"role": "user", "content": text(prompt_tokens)}],
            "chosen": [{"role": "assistant", "content": text(answer_tokens)}],
            "rejected": [{"role": "assistant", "content": text(answer_tokens)}],
        }
        for _ in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
