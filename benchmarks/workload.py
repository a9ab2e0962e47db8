"""The models, the rows and the training of the benchmarks, made from seeds: no download, nothing from elsewhere.

Llamas with random weights and a byte-level BPE; prompts of about 115 and answers of about 47 tokens with log-normal
lengths, as in chat preference data. Both sides train with the shape and the rates below.
"""

import json
import random
from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
BATCH, RANK, ALPHA, BETA, RATE = 8, 16, 32, 0.1, 5e-4
MAX_LENGTH = 2048
ROLLOUTS, PASSES, NEW_TOKENS, PPO_RATE = 32, 2, 64, 1e-5
"""Of PPO: answers a round, passes over them, longest answer, and a rate at which a random model stays what it is."""
PROMPT, ANSWER = 107.0, 45.0
"""Tokens of a prompt and of an answer on average; the template adds about eight to a prompt and two to an answer."""

VOCABULARY = 32768
SIZES = {
    "toy": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "5m": {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "15m": {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "60m": {
        "vocab_size": VOCABULARY,
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


def make_model(folder: Path, size: str, vocabulary: int | None = None) -> Path:
    """Write tokenizer and random weights of `size` to a folder (kept if there already) and return it.

    A vocabulary other than that of the size changes embedding and head alone: the tokenizer, and so every row, stays
    the same, and the added tokens are never used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = SIZES[size] | ({"vocab_size": vocabulary} if vocabulary else {})
    target = folder / f"llama-{size}-{shape['vocab_size']}"
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
        model_max_length=MAX_LENGTH,
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(1234)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=MAX_LENGTH,
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
    model: Path, count: int, *, prompt_tokens: float = PROMPT, answer_tokens: float = ANSWER
) -> list[dict]:
    """Chat pairs whose lengths are log-normal around the given means."""
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


def make_conversations(
    model: Path, count: int, *, prompt_tokens: float = PROMPT, answer_tokens: float = ANSWER
) -> list[dict]:
    """Conversations of one question and one answer: the chosen ones of `make_rows`."""
    rows = make_rows(model, count, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    return [{"messages": row["prompt"] + row["chosen"]} for row in rows]


def make_prompts(model: Path, count: int, *, prompt_tokens: float = PROMPT) -> list[dict]:
    """The prompts of `make_rows`, without answers."""
    return [{"prompt": row["prompt"]} for row in make_rows(model, count, prompt_tokens=prompt_tokens)]


def runs_beside(rows: str, precision: str) -> Path:
    """Folder of the runs `a`, `b` and `reward` that belong to a file of rows."""
    return Path(rows).with_name(f"{Path(rows).stem}-{precision}-runs")


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
