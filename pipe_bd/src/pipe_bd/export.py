"""Write the trained student as one model: a Hugging Face folder, or weights with a manifest.

A folder appears whole or not at all: it is written beside its place, read back and compared, then
renamed. Layout of a generic export (format version 1)::

    student.safetensors   "<block number>.<name in the block's state dict>" → tensor
    manifest.json         format, version, task, blocks: [{name, candidate, module, parameters}],
    sha256 of the weights
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from shorthaul import atomic
from shorthaul.errors import Fault, UserError
from torch import nn

from pipe_bd.blocks import Task
from pipe_bd.stitch import Choice, check_choice, chosen, device_of, stitch

if TYPE_CHECKING:
    from pipe_bd.adapters.huggingface import HFTask

FORMAT, VERSION = "pipe-bd-student", 1
WEIGHTS, MANIFEST = "student.safetensors", "manifest.json"
_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


def export(
    task: Task, directory: Path | str, choose: Choice = None, overwrite: bool = False
) -> Path:
    """Write the student with :func:`export_hf` or :func:`export_weights`, as fits the task."""
    from pipe_bd.adapters.huggingface import HFTask

    if isinstance(task, HFTask):
        return export_hf(task, directory, choose, overwrite)
    return export_weights(task, directory, choose, overwrite)


def _atomically(directory: Path | str, overwrite: bool, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` write into a temporary sibling folder, then put it in its place."""
    target = Path(directory).resolve()  # what a link leads to is replaced, not the link
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a folder to export to")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} is not empty: name another folder, or pass overwrite (--overwrite)"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.parent / f".{target.name}.{os.getpid()}.tmp"
        fresh.mkdir()
    except OSError as error:
        raise UserError(f"cannot write beside {target}: {error.strerror}") from error
    try:
        fill(fresh)
        for path in fresh.iterdir():
            _sync(path)
        _sync(fresh)
        if target.exists():
            old = target.parent / f".{target.name}.{os.getpid()}.old"
            os.rename(target, old)
            try:
                os.rename(fresh, target)
            except OSError:
                os.rename(old, target)
                raise
            shutil.rmtree(old)
        else:
            os.rename(fresh, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- any task


def export_weights(
    task: Task, directory: Path | str, choose: Choice = None, overwrite: bool = False
) -> Path:
    """Write the chosen student blocks as safetensors with a manifest.

    Args:
        task: the trained task.
        directory: a new or empty folder.
        choose: candidate per block, see :func:`~pipe_bd.stitch.chosen`.
        overwrite: replace what is there.
    """
    check_choice(task, choose)
    blocks, tensors = [], {}
    for i, pair in enumerate(task.pairs):
        name, candidate = chosen(pair, choose)
        state = candidate.module.state_dict()
        # A copy each: safetensors refuses tensors that share memory.
        tensors.update(
            {f"{i}.{k}": v.detach().cpu().clone().contiguous() for k, v in state.items()}
        )
        count = sum(p.numel() for p in candidate.module.parameters())
        kind = f"{type(candidate.module).__module__}.{type(candidate.module).__qualname__}"
        blocks.append({"name": pair.name, "candidate": name, "module": kind, "parameters": count})

    def fill(folder: Path) -> None:
        save_file(tensors, folder / WEIGHTS)
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "task": task.name,
            "blocks": blocks,
            "sha256": digest,
        }
        atomic.write_json(folder / MANIFEST, manifest)

    return _atomically(directory, overwrite, fill)


def load_weights(task: Task, directory: Path | str) -> nn.Module:
    """Put exported weights into the students of an equal task and return the stitched student.

    Raises:
        UserError: not an export, of a newer format, damaged, or of another model.
    """
    folder = Path(directory)
    manifest = atomic.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{folder} is not a student exported by pipe-bd")
    if manifest["version"] > VERSION:
        raise UserError(
            f"{folder} has format version {manifest['version']}, this program knows {VERSION}: "
            "update pipe-bd"
        )
    raw = folder / WEIGHTS
    if not raw.is_file() or hashlib.sha256(raw.read_bytes()).hexdigest() != manifest["sha256"]:
        raise UserError(f"{raw} is missing or damaged: export the student again")
    stored = [b["name"] for b in manifest["blocks"]]
    names = [p.name for p in task.pairs]
    if stored != names:
        raise UserError(
            f"{folder} holds blocks {', '.join(stored)}, the task has {', '.join(names)}: load it "
            "into its own model"
        )
    tensors = load_file(raw)
    choose = {b["name"]: b["candidate"] for b in manifest["blocks"]}
    for i, pair in enumerate(task.pairs):
        prefix = f"{i}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            chosen(pair, choose)[1].module.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{folder} does not fit block {pair.name!r}: {str(error).splitlines()[-1].strip()}"
            ) from error
    return stitch(task, choose)


# -- Hugging Face


def student_model(task: HFTask, choose: Choice = None) -> Any:
    """The student as a model of the teacher's class, around the teacher's embeddings and head.

    Raises:
        UserError: the layers do not have one common shape, which a configuration of this class
            cannot state.
    """
    from pipe_bd.adapters._modules import share
    from pipe_bd.adapters.hf_layers import restore_attention, student_config
    from pipe_bd.adapters.huggingface import layer_list

    check_choice(task, choose)
    if task.model is None:
        raise UserError(
            "this task was sent between processes and left its teacher behind: export from the "
            "process that made it"
        )
    total = len(task.pairs)
    shapes = [task.shapes[chosen(p, choose)[0]].at(i, total) for i, p in enumerate(task.pairs)]
    for i, shape in enumerate(shapes):
        if shape.sizes() != shapes[0].sizes():
            raise UserError(
                f"layer {i} has (ffn, heads, kv_heads) = {shape.sizes()}, layer 0 has "
                f"{shapes[0].sizes()}: one configuration "
                "holds one shape, choose candidates of equal shape and change all layers"
            )
    old = task.model.config
    new = student_config(old, shapes[0])
    layers = []
    for i, (pair, shape) in enumerate(zip(task.pairs, shapes, strict=True)):
        student = chosen(pair, choose)[1].module
        layers.append(
            restore_attention(pair.teacher, student, i, old, new, shape)
            if shape.no_attention
            else share(student)
        )
    model = share(task.model)
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = new
    base: Any = model.base_model
    setattr(base, layer_list(base), nn.ModuleList(layers))
    return model.eval()


def export_hf(
    task: HFTask, directory: Path | str, choose: Choice = None, overwrite: bool = False
) -> Path:
    """Write the student so that a plain ``AutoModelForCausalLM.from_pretrained`` loads it.

    A layer without attention is written with an attention whose output projection is zero: the same
    function in a shape that the class knows. The folder is read back before it takes its place, and
    its logits must equal the stitched student's.

    Args:
        task: the trained task.
        directory: a new or empty folder.
        choose: candidate per layer, see :func:`~pipe_bd.stitch.chosen`.
        overwrite: replace what is there.

    Raises:
        UserError: layers of different shapes, or a folder that is not empty.
        Fault: what was written does not compute what the student computes.
    """
    import transformers

    from pipe_bd.adapters.huggingface import quiet

    model = student_model(task, choose)
    stitched = stitch(task, choose)
    device = device_of(stitched)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (2, 16), generator=generator)

    def fill(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
        if task.directory is not None:
            for pattern in _TOKENIZER:
                for path in task.directory.glob(pattern):
                    shutil.copy2(path, folder / path.name)
        # A choice of the process, not part of what is saved.
        implementation = model.config._attn_implementation
        with quiet():
            again = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=model.dtype, attn_implementation=implementation
            )
        with torch.no_grad():
            ours, theirs = stitched(ids.to(device)), again.eval().to(device)(ids.to(device)).logits
        if not torch.equal(ours, theirs):
            raise Fault(
                "the exported model differs from the student by up to "
                f"{float((ours - theirs).abs().max()):.3g} in its logits"
            )

    return _atomically(directory, overwrite, fill)
