"""From a name to a frozen base in memory: choice, checks, quantisation."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lite_align.errors import ModelError
from lite_align.model import attention, bits, folder
from lite_align.model.bits import Linear4bit
from lite_align.model.storage import HostEmbedding, unnest_scales
from lite_align.recipe import ModelOptions, SpeedOptions

GIB = 2**30

_PLAIN_STORAGE = SpeedOptions()

AUTO_MODELS = (
    (15.0, "Qwen/Qwen2.5-7B-Instruct"),
    (9.5, "Qwen/Qwen3-4B-Instruct-2507"),
    (5.5, "Qwen/Qwen2.5-1.5B-Instruct"),
    (0.0, "Qwen/Qwen2.5-0.5B-Instruct"),
)
"""GiB of memory and the model that `auto` takes from there; cards report a little less than their label."""


@dataclass(frozen=True, slots=True)
class Quirk:
    """What is special about an architecture: a row of `QUIRKS`."""

    targets: tuple[str, ...] = ()
    """Projections that get an adapter where the default names do not fit (fused ones, for example)."""


QUIRKS = {
    "phi3": Quirk(targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "glm": Quirk(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")),
    "glm4": Quirk(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")),
    "gpt_neox": Quirk(targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "falcon": Quirk(targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "bloom": Quirk(targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "mpt": Quirk(targets=("Wqkv", "out_proj", "up_proj", "down_proj")),
}
"""Everything this program knows about single architectures, by `model_type`."""


class Settled(NamedTuple):
    """What `auto` means for a model on a device, and how many positions the model has."""

    quantization: str
    dtype: str
    positions: int


class Choice(NamedTuple):
    """A model and why it was chosen."""

    name: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A frozen base model in memory.

    Attributes:
        model: the causal language model, in train mode, without dropout, no parameter trainable.
        tokenizer: its tokenizer.
        name: as the user wrote it (or what `auto` chose).
        path: the folder it was read from.
        parameters: weights of the unquantised model, tied ones counted once.
        quantization: none, nf4 or int8.
        dtype: of the arithmetic.
        identity: what numbers of the frozen base depend on.
        notes: changes that were made while loading, one line each.
        embedding: the input embedding, if it lies in the memory of the host.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    path: Path
    parameters: int
    quantization: str
    dtype: torch.dtype
    identity: dict[str, str]
    notes: list[str] = field(default_factory=list)
    embedding: HostEmbedding | None = None

    @property
    def quirk(self) -> Quirk:
        """What is special about the architecture."""
        return QUIRKS.get(self.model.config.get_text_config().model_type, Quirk())

    @property
    def device(self) -> torch.device:
        """Where the model computes; the last weights are there, the first may be an embedding on the host."""
        return list(self.model.parameters())[-1].device


def choose(options: ModelOptions, *, device: torch.device | str, memory: int | None = None) -> Choice:
    """Resolve `model.name=auto`: the largest open model that fits the GPU, or the built-in one without a GPU.

    Args:
        options: the recipe's block; a name other than `auto` is returned as it is.
        device: where the model will be.
        memory: bytes of the device; asked of it if None.
    """
    if options.name != "auto":
        return Choice(options.name, "chosen by you")
    if torch.device(device).type != "cuda":
        return Choice(
            folder.TINY, "no CUDA device: the built-in demo model, which knows only its small world"
        )
    size = (torch.cuda.get_device_properties(device).total_memory if memory is None else memory) / GIB
    name = next(model for least, model in AUTO_MODELS if size >= least)
    return Choice(name, f"the best open model (Apache-2.0) for a GPU with {size:.0f} GiB")


def parameter_count(name_or_path: str, revision: str | None = None) -> int:
    """Count the weights of a model from its configuration alone, tied ones once; nothing is allocated.

    Raises:
        ModelError: as `load_model`, for the configuration.
    """
    return count_parameters(_config(folder.locate(name_or_path, revision, weights=False), name_or_path))


def count_parameters(config: PreTrainedConfig) -> int:
    """Count the weights of an architecture on the meta device, tied ones once."""
    model = skeleton(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The architecture of a configuration on the meta device: shapes without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def load_model(
    options: ModelOptions, *, device: torch.device | str, speed: SpeedOptions = _PLAIN_STORAGE
) -> Loaded:
    """Load a base model, frozen, ready for shared-prefix batches: `read` and `place` in one.

    Args:
        options: name, revision, quantisation and dtype; `auto` values are resolved here (see `Loaded`).
        device: where the model goes.
        speed: whether scales are unpacked and the embedding stays on the host; `auto` is no.

    Raises:
        ModelError: the name leads nowhere, or what is there cannot be trained safely; it names the remedy.
    """
    return place(read(options, device=device), speed)


def read(options: ModelOptions, *, device: torch.device | str) -> Loaded:
    """Read the weights of a base model, quantise and freeze them.

    Raises:
        ModelError: as `load_model`.
    """
    device = torch.device(device)
    flush_denormals(device)
    name = choose(options, device=device).name
    path = folder.locate(name, options.revision)
    config = _config(path, name)
    folder.check(path, name)
    notes = _without_dropout(config)
    quantization = _quantization(options, config, device, name)
    dtype = _dtype(options, device)
    if quantization == "nf4" and device.type == "cpu":
        _check_blocks(config, name)
    parameters = count_parameters(config)
    attention.register()
    sharing = attention.can_share(config)
    implementation = attention.NAME if sharing else None
    with quiet():
        tokenizer = _tokenizer(path, name)
        model = _weights(path, name, config, quantization, dtype, device, implementation)
    _freeze(model, dtype)
    used = model.config.get_text_config()._attn_implementation
    identity = {
        "base": folder.fingerprint(path),
        "quantization": quantization,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": f"{used} on {device.type}",
        "libraries": _versions(quantization),
    }
    return Loaded(model, tokenizer, name, path, parameters, quantization, dtype, identity, notes)


def place(loaded: Loaded, speed: SpeedOptions) -> Loaded:
    """Bring a base into the form that the recipe asks for: scales unpacked, the embedding on the host."""
    if speed.unnest_scales == "on":
        unnest_scales(loaded.model)
    if speed.offload_embeddings != "on":
        return loaded
    embedding = HostEmbedding(loaded.model)
    note = ["the embedding is the head as well and stays on the device"] if embedding.tied else []
    return replace(loaded, embedding=embedding, notes=loaded.notes + note)


def flush_denormals(device: torch.device) -> None:
    """Let the calling thread, and the threads that torch makes for it from now on, take subnormal numbers for 0.

    Attention weights of about exp(-90) are subnormal, for which CPUs fall back to microcode: with them, training on
    long answers took three times as long. Flushed to zero they change nothing else.
    """
    if device.type == "cpu":
        torch.set_flush_denormal(True)


def configuration(options: ModelOptions) -> PreTrainedConfig:
    """Read the configuration of a named model.

    Raises:
        ModelError: as `load_model`, for the configuration.
    """
    return _config(folder.locate(options.name, options.revision, weights=False), options.name)


def settle(options: ModelOptions, *, device: torch.device | str) -> Settled:
    """Resolve quantisation and dtype of a named model from its configuration, without its weights.

    Raises:
        ModelError: as `load_model`, for the configuration.
    """
    config = configuration(options)
    device = torch.device(device)
    dtype = str(_dtype(options, device)).removeprefix("torch.")
    positions = config.get_text_config().to_dict().get("max_position_embeddings")
    # Architectures without the setting (recurrent ones) have no limit of their own.
    return Settled(_quantization(options, config, device, options.name), dtype, positions or 2**20)


def load_tokenizer(options: ModelOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a named model, without its weights.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = folder.locate(options.name, options.revision, weights=False)
    folder.read_config(path, options.name)
    with quiet():
        return _tokenizer(path, options.name)


def _versions(quantization: str) -> str:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return versions if quantization == "none" else f"{versions}, bitsandbytes {bits.version}"


def _config(path: Path, name: str) -> PreTrainedConfig:
    """Read a configuration and refuse what is no causal language model of the installed transformers."""
    raw = folder.read_config(path, name)
    if raw.get("is_encoder_decoder"):
        raise ModelError(
            f"{name} is an encoder-decoder model.", remedy="Use a causal (decoder-only) language model."
        )
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        remote = "auto_map" in raw
        raise ModelError(
            f"{name} needs code from its own repository, which is never run here."
            if remote
            else f"{name} has the model type {kind}, which transformers {transformers.__version__} does not know.",
            remedy="Use a model that transformers supports itself (a newer transformers may support this one).",
        )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError, StrictDataclassError) as error:
        raise ModelError(
            f"The config.json of {name} cannot be used: {error}", remedy="Restore it from the original model."
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{name} ({kind}) is not a causal language model.",
            remedy="Use a decoder-only language model.",
        )
    return config


def _without_dropout(config: PreTrainedConfig) -> list[str]:
    """Set every `*dropout*` number of a configuration to 0, in its parts too: policy and reference must agree."""
    notes = []
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))]
    for part in parts:
        for key, value in list(vars(part).items()):
            if "dropout" in key and isinstance(value, float | int) and value:
                setattr(part, key, type(value)(0))
                notes.append(f"{key} {value:g} of the model's config is set to 0")
    return notes


def _quantization(options: ModelOptions, config: PreTrainedConfig, device: torch.device, name: str) -> str:
    stored = config.to_dict().get("quantization_config")
    wanted = options.quantization
    if stored is None:
        return ("nf4" if device.type == "cuda" else "none") if wanted == "auto" else wanted
    nf4 = stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4"
    if stored.get("quant_method") == "bitsandbytes" and nf4 and wanted in ("auto", "nf4"):
        return "nf4"
    method = stored.get("quant_method", "unknown")
    raise ModelError(
        f"{name} is already quantised (quant_method {method}), and model.quantization={wanted} does not fit that.",
        remedy="Give the original weights; they are quantised while they are loaded.",
    )


def _dtype(options: ModelOptions, device: torch.device) -> torch.dtype:
    if options.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _check_blocks(config: PreTrainedConfig, name: str) -> None:
    """Refuse layers whose inputs are no multiple of 64: the CPU kernel (bitsandbytes 0.50) unpacks them wrongly."""
    model = skeleton(config)
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    sizes = sorted({module.in_features for module in linears if module.in_features % 64})
    if sizes:
        raise ModelError(
            f"{name} cannot be held in nf4 on a CPU: it has layers with {', '.join(map(str, sizes))} inputs, "
            "which is no multiple of 64.",
            remedy="Set model.quantization=none.",
        )


def _tokenizer(path: Path, name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises bare Exceptions for a damaged tokenizer.json
        raise ModelError(
            f"The tokenizer of {name} cannot be read: {error}",
            remedy="Save it again with tokenizer.save_pretrained(FOLDER) (a tokenizer.json needs no extra package).",
        ) from error


def _weights(
    path: Path,
    name: str,
    config: PreTrainedConfig,
    quantization: str,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str | None,
) -> PreTrainedModel:
    arguments: dict[str, Any] = {}
    if quantization != "none" and "quantization_config" not in config.to_dict():
        arguments["quantization_config"] = _bitsandbytes(quantization, dtype)
    if torch.cuda.is_available():
        arguments["device_map"] = {"": str(device)}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=copy.deepcopy(config),
            dtype=dtype,
            attn_implementation=implementation,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except (ValueError, OSError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"{name} cannot be loaded: {error}",
            remedy="Check that the weights belong to config.json"
            + (", or set model.quantization=none." if quantization != "none" else "."),
        ) from error
    model, info = loaded
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise ModelError(
            f"The weights of {name} do not belong to its config.json: {len(lost)} are missing or of another size.",
            details=lost[:5],
            remedy="Restore the folder from the original model; training random weights would teach nothing.",
        )
    return model


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _freeze(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """No trainable weight, no dropout, and no repacking of 4-bit weights behind autograd's back."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16, bitsandbytes (0.50) repacks the weights in an eval forward for a kernel
            # without autograd, and gradients are wrong from then on. Goes when matmul_4bit keeps autograd there.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = dtype
            module.compute_type_is_set = True
    model.train()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing its own progress and advice; errors pass, and everything is restored."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
