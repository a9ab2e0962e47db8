"""Make the built-in model: train its tokenizer and a Llama of 2.6M weights on conversations of `world`.

`python -m lite_align.assets.train_tiny --out FOLDER` takes about 20 minutes of one core and ends with a table of rule
scores by category. It has two phases: `learn` trains on short conversations, `stretch` goes on from the saved folder
with conversations that fill all positions. The same seed, steps and number of threads give the same weights on one
machine.
"""

import argparse
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lite_align.assets import town, world

TINY = Path(__file__).parent / "tiny"
PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL = (PAD, BOS, END, *(f"<|{role}|>" for role in ROLES))
VOCABULARY = 1024
POSITIONS = 4096
# Every turn is its role's token, its content and an end token, so a rendered prompt is always a prefix of the
# rendered conversation, and no content touches another one inside the tokenizer.
CHAT_TEMPLATE = """\
{{- '<|bos|>' -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception("The roles are system, user, assistant and tool, not " ~ message['role'] ~ ".") -}}
{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""
# A prompt token weighs little in the loss: the model has to answer, not to ask.
PROMPT_WEIGHT = 0.1
TOKENS_PER_BATCH = 1536
LONG_EVERY = 12
LONG_TOKENS = 1024

Turns = list[tuple[str, str]]


def conversation(rng: random.Random, *, rounds: int = 1, system: str | None = None) -> Turns:
    """A conversation of one or more rounds in the base style, now and then with a tool turn or a review."""
    profile = world.styled(world.BASE, system)
    turns: Turns = [("system", system)] if system else []
    for _ in range(rounds):
        ask = world.draw(rng)
        turns.append(("user", ask.text))
        chance = rng.random()
        if chance < 0.03 and ask.category == "fact" and ask.good:
            turns += [("assistant", town.LOOKUP), ("tool", ask.good)]
            profile_now = world.CAREFUL
        else:
            profile_now = profile
        answer = world.respond(rng, ask, profile_now)
        turns.append(("assistant", answer))
        if chance > 0.85:
            turns += [("user", town.REVIEW_REQUEST), ("assistant", world.review(ask, answer))]
    return turns


def random_conversation(rng: random.Random) -> Turns:
    """One of the conversations that make a batch: a quarter with a system turn, a fifth with two rounds."""
    system = rng.choice(list(town.SYSTEM_TURNS)) if rng.random() < 0.25 else None
    return conversation(rng, rounds=2 if rng.random() < 0.2 else 1, system=system)


def train_tokenizer(rng: random.Random, conversations: int = 6000) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the whole byte alphabet, so that any text of any language comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (content for _ in range(conversations) for _, content in random_conversation(rng))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    if len(fast) != VOCABULARY:
        raise ValueError(f"the tokenizer has {len(fast)} tokens, not {VOCABULARY}")
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights; every dimension is a multiple of 64, so that NF4 layers run on a CPU."""
    vocabulary = tokenizer.get_vocab()
    pad, bos, end = vocabulary[PAD], vocabulary[BOS], vocabulary[END]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=end,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=pad, bos_token_id=bos, eos_token_id=end)
    return model


@dataclass(frozen=True)
class Example:
    """Token ids, loss weight and position of each token."""

    ids: list[int]
    weights: list[float]
    positions: list[int]


class Encoder:
    """Turns to token ids, as the chat template renders them (a test holds them equal)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ids = {token: tokenizer.get_vocab()[token] for token in SPECIAL}

    def example(self, turns: Turns, start: int = 0) -> Example:
        """One conversation from its BOS on; assistant turns and their end tokens have the full weight."""
        ids, weights = [self._ids[BOS]], [0.0]
        for role, content in turns:
            encoded = self._tokenizer.encode(content, add_special_tokens=False)
            weight = 1.0 if role == "assistant" else PROMPT_WEIGHT
            ids += [self._ids[f"<|{role}|>"], *encoded, self._ids[END]]
            weights += [PROMPT_WEIGHT, *[weight] * (len(encoded) + 1)]
        return Example(ids, weights, list(range(start, start + len(ids))))

    def long_example(self, rng: random.Random, least: int = LONG_TOKENS) -> Example:
        """Many rounds, `least` tokens or more, in one conversation, with gaps in the positions up to the last one.

        The gaps show the model every distance between two tokens at a quarter of the cost.
        """
        rounds: list[Example] = []
        tokens = 0
        while tokens < least:
            part = self.example(conversation(rng, rounds=1))
            rounds.append(part)
            tokens += len(part.ids) - (len(rounds) > 1)
        spare = POSITIONS - sum(len(part.ids) for part in rounds)
        cuts = sorted(rng.randint(0, max(0, spare)) for _ in rounds)
        ids, weights, positions = [], [], []
        for number, (part, gap) in enumerate(zip(rounds, cuts)):
            skip = 1 if number else 0
            start = gap + len(ids)
            ids += part.ids[skip:]
            weights += part.weights[skip:]
            positions += range(start, start + len(part.ids) - skip)
        return Example(ids, weights, positions)


def batches(encoder: Encoder, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches of about TOKENS_PER_BATCH tokens, of conversations of like length; each twelfth is long."""
    step = 0
    while True:
        pool = sorted(
            (encoder.example(random_conversation(rng)) for _ in range(512)), key=lambda one: len(one.ids)
        )
        groups: list[list[Example]] = [[]]
        for example in pool:
            if len(example.ids) * (len(groups[-1]) + 1) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            step += 1
            yield group
            if step % LONG_EVERY == 0:
                yield [encoder.long_example(rng), encoder.long_example(rng)]


def stretched(encoder: Encoder, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches, every other one a single conversation of up to nearly POSITIONS tokens."""
    for batch in batches(encoder, rng):
        yield batch
        yield [encoder.long_example(rng, rng.randint(LONG_TOKENS, POSITIONS - 200))]


def loss_of(model: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
    """Weighted mean cross-entropy of the next token over a batch, () in fp32."""
    width = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights, positions = torch.zeros(len(batch), width), torch.zeros(len(batch), width, dtype=torch.long)
    for row, example in enumerate(batch):
        filled = len(example.ids)
        ids[row, :filled] = torch.tensor(example.ids)
        weights[row, :filled] = torch.tensor(example.weights)
        positions[row, :filled] = torch.tensor(example.positions)
    # Right padding needs no mask under causal attention; the mask of ones keeps gaps in the positions from being
    # read as the borders of packed rows.
    mask = torch.ones_like(ids)
    hidden = model.model(
        input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counted])
    losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    weight = weights[:, 1:][counted]
    return (losses * weight).sum() / weight.sum()


def train(
    model: LlamaForCausalLM, stream: Iterable[list[Example]], *, steps: int, learning_rate: float
) -> None:
    """AdamW; the rate is constant for half of the steps and then falls linearly to a hundredth."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    started, tokens, recent = time.time(), 0, []
    for step, batch in enumerate(stream):
        if step == steps:
            return
        scale = min(1.0, (step + 1) / 30, max(0.01, 2 * (1 - step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent[-99:], loss.item()]
        tokens += sum(len(example.ids) for example in batch)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.time() - started
            print(
                f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.3f}  {tokens / 1e6:.2f}M tokens  "
                f"{seconds:.0f} s, {time.process_time():.0f} core-s, {seconds * (steps / (step + 1) - 1):.0f} s left",
                flush=True,
            )


@torch.no_grad()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, temperature: float
) -> list[tuple[str, bool]]:
    """The answer to each user turn and whether the model ended it; greedy at temperature 0."""
    answers: list[tuple[str, bool]] = []
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    for first in range(0, len(prompts), 64):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[first : first + 64]]
        texts = [
            str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
            for chat in chats
        ]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        made = model.generate(  # pyright: ignore[reportAttributeAccessIssue] (typed for a protocol it meets late)
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=96,
            **sampling,
        )
        for ids in made[:, encoded["input_ids"].shape[1] :].tolist():
            ended = tokenizer.eos_token_id in ids
            answers.append((str(tokenizer.decode(ids, skip_special_tokens=True)), ended))
    return answers


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, per_category: int = 40) -> None:
    """Print rule scores on held-out prompts by category, greedy and sampled at T = 1."""
    rng = random.Random(99)
    asks = [
        world.draw(rng, category, held_out=True) for category in town.CATEGORIES for _ in range(per_category)
    ]
    for temperature in (0.0, 1.0):
        torch.manual_seed(0)
        answers = answer(model, tokenizer, [ask.text for ask in asks], temperature=temperature)
        scored = [(ask, world.score(ask, text, ended=ended)) for ask, (text, ended) in zip(asks, answers)]
        print(f"\nheld-out prompts, {'greedy' if temperature == 0 else 'T = 1'}")
        for category in (*town.CATEGORIES, None):
            means = world.mean_scores([one for ask, one in scored if category in (ask.category, None)])
            print(
                f"{category or 'all':<11}"
                + "  ".join(f"{name} {value:5.2f}" for name, value in means.items())
            )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in bf16, tokenizer, template and configs, without a path of this machine in any of them."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Train from scratch, save and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=TINY, help="folder of the model (default: inside the package)"
    )
    parser.add_argument("--phase", choices=["learn", "stretch", "both"], default="both")
    parser.add_argument("--steps", type=int, default=3200, help="optimiser steps of about 1,500 tokens")
    parser.add_argument(
        "--stretch-steps", type=int, default=80, help="steps of the second phase, half of them long"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    # The tokenizer has its own seed: another training seed must not change what a token id means.
    tokenizer = train_tokenizer(random.Random(0))
    encoder = Encoder(tokenizer)
    if options.phase in ("learn", "both"):
        model = new_model(tokenizer)
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
        stream = batches(encoder, random.Random(options.seed))
        train(model, stream, steps=options.steps, learning_rate=2.5e-3)
        save(model, tokenizer, options.out)
    # Always from the folder, so that the second phase alone gives what both give.
    model = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    if options.phase in ("stretch", "both"):
        stream = stretched(encoder, random.Random(options.seed + 1))
        train(model, stream, steps=options.stretch_steps, learning_rate=5e-4)
        save(model, tokenizer, options.out)
    evaluate(model.eval().float(), tokenizer)


if __name__ == "__main__":
    main()
