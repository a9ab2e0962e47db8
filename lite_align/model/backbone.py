"""One frozen base, many roles: every model that alignment needs is the same weights seen through an adapter.

Shape letters: T tokens in a row, M trained tokens, L leaves, H hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from lite_align.errors import ModelError
from lite_align.model import attention, lora, sampler, scalar_head
from lite_align.model import generate as generation
from lite_align.model.blocks import Blocks
from lite_align.model.kernels import BatchLike
from lite_align.model.load import Loaded
from lite_align.model.logps import at_temperature, choose_head, token_scores, token_statistics
from lite_align.model.replay import runner_of
from lite_align.model.sampler import Sampled
from lite_align.model.storage import weights_sha256
from lite_align.recipe import LoraOptions, SpeedOptions

_AS_IS = SpeedOptions()

SHARING_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference of hidden states that rounding explains when leaves share their root."""


class Role(StrEnum):
    """What the base is seen as.

    POLICY and REWARD are adapters, REWARD with a scalar head. BASE is no adapter at all. REFERENCE is the base, or
    the frozen twin of the adapter that a stage started from.
    """

    POLICY = "policy"
    REFERENCE = "reference"
    REWARD = "reward"
    BASE = "base"


WITH_HEAD = frozenset({Role.REWARD})
"""Roles that score a sequence; their head is kept outside PEFT (peft's modules_to_save does not survive adapters)."""


class ForestBatch(BatchLike, Protocol):
    """What the backbone needs of a packed batch (see `lite_align.data.forest.Batch`)."""

    @property
    def host_ids(self) -> Tensor:
        """(1, T) int64, `input_ids` in the memory of the host."""
        ...

    @property
    def predict(self) -> Tensor:
        """(M,) int64, the row position whose hidden state predicts a trained token."""
        ...

    @property
    def target(self) -> Tensor:
        """(M,) int64, the trained tokens."""
        ...

    def leaf_sum(self, token_values: Tensor) -> Tensor:
        """Sum (M,) values over leaves: (L,)."""
        ...

    def leaf_positions(self) -> list[Tensor]:
        """Row positions of each leaf's whole sequence, root first."""
        ...

    def leaf_ends(self) -> Tensor:
        """(L,) int64, the row position of each leaf's last token."""
        ...


@dataclass(frozen=True)
class Adapter:
    """A role's adapter: its name in PEFT's layers, its shape, PEFT's configuration of it, and its scalar head."""

    name: str
    options: LoraOptions
    config: lora.LoraConfig
    head: nn.Parameter | None = None


class Backbone:
    """A frozen base with one trainable adapter and further roles that never move.

    The adapter starts at B = 0, so POLICY equals REFERENCE until the first update. The model stays in train mode
    (without dropout both modes are the same), except while it generates.

    Args:
        loaded: the base; adapters are injected into it, so it belongs to this backbone from now on.
        options: shape of the adapter.
        seed: of the adapter's A matrices, and of the scalar head if the role has one.
        speed: which shortcuts are taken; `compile` is no where it is `auto`.
        role: that is trained.

    Attributes:
        loaded: the base with its tokenizer, name and identity.
        model: the base with its adapters.
        shares_prefixes: whether leaves share their root's computation; if not, each leaf is run alone.
        blocks: the decoder blocks; `recompute` says how many of them recompute their activations.
        notes: what was decided while building, one line each.

    Raises:
        ModelError: the model has no such targets, or its logits cannot be computed from hidden states.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: LoraOptions,
        *,
        seed: int,
        speed: SpeedOptions = _AS_IS,
        role: Role = Role.POLICY,
    ) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.notes = list(loaded.notes)
        self.dtype = loaded.dtype
        self.device = loaded.device
        self.speed = speed
        self.trained = role
        self.kernel = attention.choose(self.model.config, self.device, self.dtype)
        self.shares_prefixes = self._probe_sharing()
        self._adapters: dict[Role, Adapter | None] = {Role.BASE: None, Role.REFERENCE: None}
        self._role = Role.BASE
        self._attach(role, options, seed)
        self._switch(role)
        self.head = choose_head(self.model, frozen=speed.frozen_head)
        self.blocks = Blocks(self.model, self._contexts, random=options.dropout > 0)
        if speed.compile == "on":
            self.blocks.compile()

    def _attach(self, role: Role, options: LoraOptions, seed: int) -> None:
        targets = lora.find_targets(self.model, options, self.loaded.quirk.targets)
        config = lora.attach(
            self.model,
            role.value,
            targets,
            options,
            base_name=self.loaded.name,
            seed=seed,
            fused=self.speed.fused_lora,
        )
        head = None
        if role in WITH_HEAD:
            size = self.model.config.get_text_config().hidden_size
            head = scalar_head.create(size, seed=seed, device=self.device)
        self._adapters[role] = Adapter(role.value, options, config, head)
        self._layers = lora.layers(self.model)

    def add(self, role: Role, options: LoraOptions) -> None:
        """Give a further role an adapter of its own shape; it is frozen. `load_adapter` or a copy fills it."""
        self._attach(role, options, 0)
        for _, parameter in self.parameters(role):
            parameter.requires_grad_(False)
        self._switch(self._role)

    def remove(self, role: Role) -> None:
        """Take the adapter of a role away, so that `add` can give it one of another shape."""
        lora.detach(self.model, self._adapter(role).name)
        self._adapters[role] = None
        self._switch(Role.BASE if self._role is role else self._role)

    def _probe_sharing(self) -> bool:
        sharing = attention.can_share(self.model.config)
        reason = sharing.reason
        if sharing:
            vocabulary = self.model.config.get_text_config().vocab_size
            try:
                if attention.shares_exactly(
                    self.model.base_model, self.kernel, vocabulary, SHARING_TOLERANCE[self.dtype]
                ):
                    return True
                reason = "answers that share a prompt come out differently than alone"
            except ModelError as error:
                reason = error.what
        self.notes.append(f"prompts are not shared between answers (slower): {reason}")
        return False

    # Roles.

    @property
    def current_role(self) -> Role:
        """The role that a forward pass would run under now."""
        return self._role

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        """See the base as `role`; the role before comes back at the end, after an error too.

        Only two flags of each adapter layer change, never `requires_grad`, so gradients of another role's
        forward pass are not disturbed.
        """
        before = self._role
        self._switch(role)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, role: Role) -> None:
        # PEFT's set_adapter and disable_adapter also move requires_grad and take 15 to 60 ms (peft 0.21).
        adapter = self._adapters[role]
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter.name]
        self._role = role

    def fix_reference(self, kind: Literal["base", "adapter"]) -> None:
        """Say what REFERENCE is: the base, or a frozen twin of the trained adapter as it is now."""
        if kind == "base":
            self._adapters[Role.REFERENCE] = None
            self._switch(self._role)
            return
        trained = self._adapter(self.trained)
        if not lora.parameters(self.model, Role.REFERENCE.value):
            self.add(Role.REFERENCE, trained.options)
        elif self._adapters[Role.REFERENCE] is None:
            self._adapters[Role.REFERENCE] = replace(trained, name=Role.REFERENCE.value, head=None)
        lora.set_tensors(self.model, Role.REFERENCE.value, lora.tensors(self.model, trained.name))
        self._switch(self._role)

    def recompute(self, blocks: int) -> None:
        """Recompute the activations of so many blocks in the backward pass, under the role of the forward."""
        self.blocks.recompute(blocks)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self.role(self._role)

    # Forward passes, under the current role.

    def hidden(self, batch: ForestBatch) -> Tensor:
        """Last hidden states (T, H) of a packed batch."""
        if not self.shares_prefixes:
            return self._hidden_leaf_by_leaf(batch)
        plan = attention.plan(batch, self.kernel)
        embedding = self.loaded.embedding
        with embedding.reading(batch.host_ids) if embedding else nullcontext():
            output = self.model.base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=plan.mask,
                use_cache=False,
                plan=plan,
            )
        return output.last_hidden_state[0]

    def _hidden_leaf_by_leaf(self, batch: ForestBatch) -> Tensor:
        """Run every root with one leaf at a time; exact for models whose state cannot branch."""
        parts: list[Tensor] = []
        for positions, segment in zip(batch.leaf_positions(), batch.segments):
            ids = batch.input_ids[:, positions]
            alone = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            parts.append(alone[len(positions) - (segment.stop - segment.start) :])
        hidden = torch.cat(parts)
        padding = batch.input_ids.shape[1] - len(hidden)
        return nn.functional.pad(hidden, (0, 0, 0, padding)) if padding else hidden

    def states(self, batch: ForestBatch) -> Tensor:
        """Last hidden states before every trained token, those that predict it: (M, H)."""
        # index_select: its backward adds in a fixed order.
        return self.hidden(batch).index_select(0, batch.predict)

    def token_scores(self, batch: ForestBatch) -> tuple[Tensor, Tensor]:
        """Log-prob of every trained token and whether no token is likelier: (M,) fp32 and (M,) bool."""
        return token_scores(self.states(batch), self.head, batch.target, contexts=self._contexts)

    def state_logps(self, states: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probs of tokens from the states before them, (M, H) and (M,) -> (M,) fp32, at a temperature."""
        head = at_temperature(self.head, temperature)
        return token_scores(states, head, target, contexts=self._contexts)[0]

    def state_statistics(
        self, states: Tensor, target: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`state_logps` without gradients, and the entropy of the token after every state, in nats: (M,) fp32 each."""
        return token_statistics(states, at_temperature(self.head, temperature), target)

    def leaf_logps(self, batch: ForestBatch) -> Tensor:
        """Log-prob of every leaf's trained tokens together: (L,) fp32."""
        return batch.leaf_sum(self.token_scores(batch)[0])

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Leave the adapters' dropout out: what is measured has to be the same every time."""
        active = [m for m in self.model.modules() if isinstance(m, nn.Dropout) and m.training]
        for module in active:
            module.eval()
        try:
            yield
        finally:
            for module in active:
                module.train()

    def scores(self, batch: ForestBatch) -> Tensor:
        """Score of every leaf, read at its last token: (L,) fp32; the current role must have a scalar head."""
        return self.scores_of(self.hidden(batch), batch)

    def scores_of(self, hidden: Tensor, batch: ForestBatch) -> Tensor:
        """`scores` from hidden states (T, H) of the batch that were computed under the current role."""
        head = self._adapter(self._role).head
        if head is None:
            raise ValueError(f"{self._role} has no scalar head")
        return hidden.index_select(0, batch.leaf_ends()).float() @ head

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        stop_ids: frozenset[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
        tell: Callable[[int], None] | None = None,
    ) -> list[tuple[int, ...]]:
        """Answers to prompts as token ids, the stop id included; see `model.generate`."""
        with self._generating() as pad:
            return generation.generate(
                self.model,
                prompts,
                stop_ids=stop_ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                pad_id=pad,
                seed=seed,
                batch_size=batch_size,
                tell=tell,
            )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        stop_ids: frozenset[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
        advance: Callable[[int], None] | None = None,
    ) -> list[list[Sampled]]:
        """Answers to each prompt that are drawn from the model's own distribution; see `model.sampler`."""
        runner = runner_of(self.model)
        with self._generating() as pad:
            answers = sampler.sample(
                self.model,
                prompts,
                samples=samples,
                stop_ids=stop_ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                pad_id=pad,
                seed=seed,
                batch_size=batch_size,
                advance=advance,
                runner=runner,
            )
        if runner.note and runner.note not in self.notes:
            self.notes.append(runner.note)
        return answers

    @contextmanager
    def _generating(self) -> Iterator[int]:
        """Bring the embedding to the device for a while; gives the id of the padding."""
        pad = self.loaded.tokenizer.pad_token_id
        embedding = self.loaded.embedding
        with embedding.on_device() if embedding else nullcontext():
            yield pad if isinstance(pad, int) else 0

    # Adapters.

    def _adapter(self, role: Role) -> "Adapter":
        adapter = self._adapters.get(role)
        if adapter is None:
            raise ValueError(f"{role} is the base itself and has no adapter")
        return adapter

    def has(self, role: Role) -> bool:
        """Whether a role has an adapter of its own."""
        return self._adapters.get(role) is not None

    def shape(self, role: Role) -> tuple[int, float, frozenset[str]]:
        """Rank, scale and layers of a role's adapter."""
        config = self._adapter(role).config
        return config.r, lora.scale(config.to_dict()), frozenset(config.target_modules or ())

    def parameters(self, role: Role) -> list[tuple[str, nn.Parameter]]:
        """Weights of a role's adapter with their names in PEFT's file, then its head; none if it is the base."""
        adapter = self._adapters[role]
        if adapter is None:
            return []
        named = lora.parameters(self.model, adapter.name)
        return named if adapter.head is None else [*named, (scalar_head.NAME, adapter.head)]

    def adapter_tensors(self, role: Role) -> dict[str, Tensor]:
        """Copies of a role's adapter, and of its head, on the CPU."""
        self._adapter(role)
        return {name: value.detach().cpu().clone() for name, value in self.parameters(role)}

    def set_adapter_tensors(self, role: Role, values: Mapping[str, Tensor]) -> None:
        """Put an adapter's weights in place; ModelError if names or shapes are not exactly the role's own."""
        adapter = self._adapter(role)
        if adapter.head is not None:
            scalar_head.check(values, adapter.head)
        lora.set_tensors(self.model, adapter.name, {k: v for k, v in values.items() if k != scalar_head.NAME})
        if adapter.head is not None:
            adapter.head.data.copy_(values[scalar_head.NAME])

    def save_adapter(self, role: Role, folder: Path) -> None:
        """Write a role's adapter in PEFT's format, loadable by PEFT alone, with its head beside it."""
        adapter = self._adapter(role)
        lora.save_adapter(self.model, adapter.name, adapter.config, folder)
        if adapter.head is not None:
            scalar_head.save_head(adapter.head, folder)

    def load_adapter(self, role: Role, folder: Path, *, head: bool = True) -> None:
        """Read an adapter, and the head of a role that has one, into a role; without `head` the head stays.

        Raises:
            ModelError: it cannot be read, or has other layers, another rank, another scale or another head.
        """
        own = self._adapter(role)
        config, values = lora.read_adapter(folder)
        scale, ours = lora.scale(config), lora.scale(own.config.to_dict())
        if scale != ours:
            raise ModelError(
                f"{folder} has the scale {scale:g} (lora_alpha / r), the recipe {ours:g}.",
                remedy=f"Set lora.rank={config['r']} and lora.alpha={config['lora_alpha']}.",
            )
        if own.head is not None:
            values[scalar_head.NAME] = scalar_head.read(folder) if head else own.head.detach().cpu()
        self.set_adapter_tensors(role, values)

    # Identity.

    def reference_identity(self) -> dict[str, str]:
        """Everything that reference log-probs depend on besides token ids."""
        name = self.adapter_sha256(Role.REFERENCE) if self.has(Role.REFERENCE) else "none"
        shared = "shared" if self.shares_prefixes else "alone"
        if not self.speed.share_prompts:
            shared += ", each answer with a prompt of its own"
        return {**self.loaded.identity, "reference": name, "kernel": f"{self.kernel.kind}, prompts {shared}"}

    def adapter_sha256(self, role: Role) -> str:
        """Sha256 over the scale, names, shapes and weights of a role's adapter and head: see `lora.digest`."""
        return lora.digest(self._adapter(role).config.to_dict(), self.adapter_tensors(role))

    def base_sha256(self) -> str:
        """Sha256 over the base's weights in memory: equal before and after training, or the reference moved."""
        return weights_sha256(self.model)


def adapter_digest(folder: Path) -> str:
    """`Backbone.adapter_sha256` of an adapter folder, without its base; ModelError if it cannot be read."""
    config, values = lora.read_adapter(folder)
    if (folder / scalar_head.FILE).exists():
        values[scalar_head.NAME] = scalar_head.read(folder)
    return lora.digest(config, values)
