"""`lite-align export RUN --to …`, top to bottom: checks, weights, comparison with the run, card, folder."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lite_align.data.render import Renderer
from lite_align.data.template import ChatTemplate
from lite_align.errors import LiteAlignError, UserError
from lite_align.evaluate import folder as run_files
from lite_align.export import Kind, card, companions, gguf, modelfile, probes
from lite_align.export.merge import Merge
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import fingerprint, is_hub_id, locate
from lite_align.model.load import load_tokenizer, quiet
from lite_align.model.lora import CONFIG_FILE, WEIGHTS_FILE
from lite_align.train import files
from lite_align.train.finished import FinishedRun, read_finished, require_policy
from lite_align.view import View

Dtype = Literal["auto", "float32", "bfloat16"]
BASE, UNPACKED = "the base", "the unpacked base"
"""What an adapter can be merged into: the checkpoint of the base, or its quantised weights as the run used them."""
NOTICED = 0.1
"""Share of what the run changed; an export that differs by more than this from the run is worth a warning."""


@dataclass
class Job:
    """One export while it is made.

    Attributes:
        run: what is exported.
        kind: into what.
        view: where it is told.
        part: the folder that is filled, renamed when it is whole.
        dtype: of merged weights.
        notes: for the model card.
    """

    run: FinishedRun
    kind: Kind
    view: View
    part: Path
    dtype: Dtype = "auto"
    notes: list[str] = field(default_factory=list)


def export(run_dir: Path, kind: Kind, view: View, *, out: Path | None = None, dtype: Dtype = "auto") -> Path:
    """Export a finished run and return the folder.

    Args:
        run_dir: the run.
        kind: what to write.
        view: where it is told.
        out: folder to write, new or empty; default RUN/export/KIND.
        dtype: of merged weights; auto: of the run's arithmetic.

    Raises:
        UserError: the run is not finished or cannot be exported so, or `out` is in use.
        LiteAlignError: what was written is not the model of the run; it is deleted again.
    """
    run = read_finished(run_dir)
    if kind is not Kind.ADAPTER or not run.has_adapter(Role.REWARD):
        require_policy(run, f"to export as {kind}")
    target = out or run.folder / "export" / kind.value
    _require_unused(target)
    with _whole(target) as part:
        job = Job(run, kind, view, part, dtype)
        view.section("export", f"{run.folder} ({run.stage}) · {run.recipe.model.name} · as {kind}")
        WRITERS[kind](job)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    view.section("saved", f"{target}  ({files.human_bytes(size)})")
    return target


def _require_unused(target: Path) -> None:
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target} is not empty.", remedy="Choose another folder with --out, or remove it.")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end, or is deleted if anything goes wrong."""
    part = target.parent / f".{target.name}.part-{os.getpid()}"
    new_parent = not target.parent.exists()
    with files.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        files.make_folder(part)
        try:
            yield part
            if target.exists():
                target.rmdir()
            files.rename_folder(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if new_parent and not any(target.parent.iterdir()):
                target.parent.rmdir()


# What can be written.


def write_adapter(job: Job) -> None:
    """The adapter in PEFT's format, with the base's name and revision, tokenizer, template and stop tokens."""
    run = job.run
    role = Role.POLICY if run.has_adapter(Role.POLICY) else Role.REWARD
    base_folder, base = find_base(run)
    for file in sorted(run.adapter(role).iterdir()):
        if file.name == CONFIG_FILE:
            config = json.loads(file.read_text(encoding="utf-8"))
            config |= {"base_model_name_or_path": base.name, "revision": base.revision}
            files.write_new(job.part / CONFIG_FILE, files.dump_json(config, indent=2))
        elif file.suffix in (".json", ".safetensors"):
            files.write_new(job.part / file.name, file.read_bytes())
    tokenizer = load_tokenizer(run.recipe.model)
    companions.copy_tokenizer(base_folder, job.part)
    companions.write_generation(base_folder, job.part, tokenizer, Renderer(tokenizer).stop_ids)
    count = companions.require_same_ids(tokenizer, job.part)
    job.view.section("tokenizer", f"{count} conversations have the same token ids", note="ok")
    if role is Role.REWARD:
        job.notes.append(
            "This adapter scores answers: head.safetensors holds its head, and it writes no text."
        )
    files.write_new(job.part / "README.md", card.write(run, job.kind, base, None, job.notes))
    job.view.section(
        "adapter", f"{WEIGHTS_FILE} as the run saved it · base {base.name} {base.revision or ''}"
    )


def write_merged(job: Job) -> Path:
    """The adapter merged into whichever weights come closer to the run, as a folder for plain transformers."""
    run, view = job.run, job.view
    base_folder, base = find_base(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = run.backbone(device)
    renderer = Renderer(backbone.loaded.tokenizer)
    dtype = backbone.dtype if job.dtype == "auto" else getattr(torch, job.dtype)
    heard, moved = _listen(backbone, renderer, run)
    view.section(
        "probes",
        f"{len(heard.ids)} prompts, {sum(map(len, heard.ids)):,} tokens of greedy answers · the run changed the "
        f"model by {moved:.1e} nats a token",
    )
    candidates = _write_candidates(job, base_folder, backbone, dtype)
    pad = backbone.loaded.tokenizer.pad_token_id
    tokenizer, stop_ids = backbone.loaded.tokenizer, renderer.stop_ids
    del backbone  # the candidates are loaded one by one: never two models in memory
    figures: dict[str, probes.Agreement] = {}
    for name, folder in candidates.items():
        companions.write_config(base_folder, folder, str(dtype).removeprefix("torch."))
        companions.copy_tokenizer(base_folder, folder)
        companions.write_generation(base_folder, folder, tokenizer, stop_ids)
        figures[name] = _measure(folder, heard, stop_ids, pad if isinstance(pad, int) else 0)
        view.section("compared", f"merged into {name}: {figures[name].told()}")
    taken = min(figures, key=lambda name: (figures[name].kl, -figures[name].same_top))
    _require_agreement(figures[taken])
    if figures[taken].kl > NOTICED * moved:
        note = (
            f"The export differs from the run by {figures[taken].kl:.1e} nats a token, the run from its start by only "
            f"{moved:.1e}: a part of what was trained is lost in rounding."
        )
        view.warn(note)
        job.notes.append(note)
    count = companions.require_same_ids(tokenizer, candidates[taken])
    view.section("taken", f"merged into {taken} · {count} conversations have the same token ids", note="ok")
    for file in sorted(candidates[taken].iterdir()):
        file.rename(job.part / file.name)
    for folder in candidates.values():
        shutil.rmtree(folder)
    checked = card.Checked(figures, taken, moved, count)
    files.write_new(job.part / "README.md", card.write(run, job.kind, base, checked, job.notes))
    return job.part


def write_ollama(job: Job) -> None:
    """The merged folder with a Modelfile."""
    run = job.run
    base_folder, _ = find_base(run)
    tokenizer = load_tokenizer(run.recipe.model)
    renderer = Renderer(tokenizer)
    # The renderer has tried the template in a child process already.
    template = ChatTemplate(tokenizer, None, trusted=True)
    generation = companions.read_generation(base_folder)
    text, notes = modelfile.write(template, tokenizer, renderer.stop_ids, generation, base_folder)
    for note in notes:
        job.view.section("note", note)
        job.notes.append(note)
    write_merged(job)
    files.write_new(job.part / "Modelfile", text.encode())
    job.view.section("ollama", "Modelfile with template and stops · ollama create NAME -f Modelfile")


def write_gguf(job: Job) -> None:
    """One GGUF file and its card, from the merged folder."""
    converter = gguf.find_converter()
    job.notes.append("The weights were compared before llama.cpp's converter wrote this file, not after.")
    write_merged(job)
    dtype = json.loads((job.part / "config.json").read_text(encoding="utf-8"))["dtype"]
    gguf.convert(converter, job.part, job.part / "model.gguf", dtype, job.view)
    for file in sorted(job.part.iterdir()):
        if file.name not in ("model.gguf", "README.md"):
            file.unlink()


WRITERS: Mapping[Kind, Callable[[Job], object]] = {
    Kind.ADAPTER: write_adapter,
    Kind.MERGED: write_merged,
    Kind.OLLAMA: write_ollama,
    Kind.GGUF: write_gguf,
}


def find_base(run: FinishedRun) -> tuple[Path, card.Base]:
    """The base's folder, and how it is named: a hub model by the commit that is here, a folder as the recipe does."""
    options = run.recipe.model
    folder = locate(options.name, options.revision)
    revision = options.revision
    if is_hub_id(options.name) and folder.parent.name == "snapshots":
        revision = folder.name
    found = fingerprint(folder)
    known = (run.record.get("hashes") or {}).get("base")
    if known is not None and known != found:
        raise UserError(
            f"{options.name} is not the base that {run.folder} was trained on: its weights have changed.",
            details=[f"sha256 {found[:16]}… here, {known[:16]}… in run.json"],
            remedy="Restore the weights that it was trained on (model.revision names them for a hub model).",
        )
    return folder, card.Base(options.name, revision, found)


# Merged weights.


def _listen(backbone: Backbone, renderer: Renderer, run: FinishedRun) -> tuple[probes.Answers, float]:
    """The run's answers to the probe prompts, and how far the run moved its model (KL a token)."""
    own = [str(row["prompt"]) for row in run_files.read(run.folder).answers if "prompt" in row]
    prompts = probes.probe_prompts(renderer, own)
    pad = backbone.loaded.tokenizer.pad_token_id
    with backbone.role(Role.POLICY):
        heard = probes.listen(
            backbone.model, prompts, stop_ids=renderer.stop_ids, pad_id=pad if isinstance(pad, int) else 0
        )
    with backbone.role(Role.REFERENCE):
        return heard, probes.compare(backbone.model, heard).kl


def _write_candidates(job: Job, base: Path, backbone: Backbone, dtype: torch.dtype) -> dict[str, Path]:
    """Checkpoints merged into the base's own weights and, for a quantised run, into the unpacked ones."""
    quantized = backbone.loaded.quantization != "none"
    stored_quantized = (
        "quantization_config" in backbone.model.config.to_dict() and quantized and _is_packed(base)
    )
    names = [*([] if stored_quantized else [BASE]), *([UNPACKED] if quantized else [])]
    adapter = job.run.adapter(Role.POLICY)
    merges = {name: Merge(base, adapter, backbone, dtype, unpack=name == UNPACKED) for name in names}
    files.require_space(job.part, sum(merge.size() for merge in merges.values()))
    found = {}
    with job.view.bar(
        "merge", sum(merge.tensors() for merge in merges.values()), "tensors", speed=False
    ) as bar:
        for number, (name, merge) in enumerate(merges.items()):
            found[name] = job.part / f"candidate-{number}"
            files.make_folder(found[name])
            merge.write(found[name], bar.advance)
    return found


def _is_packed(base: Path) -> bool:
    return "quantization_config" in json.loads((base / "config.json").read_text(encoding="utf-8"))


def _measure(folder: Path, heard: probes.Answers, stop_ids: frozenset[int], pad_id: int) -> probes.Agreement:
    """Load an export as anyone would, with plain transformers, and compare it with the run."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.2 * size
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    model = model.to("cuda" if fits else "cpu")  # pyright: ignore[reportArgumentType]
    return probes.compare(
        model,
        heard,
        decode=lambda: probes.answer(model, heard.prompts, stop_ids=stop_ids, pad_id=pad_id),
    )


def _require_agreement(found: probes.Agreement) -> None:
    if not found.acceptable:
        raise LiteAlignError(
            "LA801: the export is not the model of the run, so it was deleted.",
            details=[
                found.told(),
                f"allowed: KL {probes.MOST_KL:g} at most, same top token {100 * probes.LEAST_SAME_TOP:g} % at least",
            ],
            remedy="Use --to adapter, which is exact, or --dtype float32 where rounding is the reason.",
        )
