"""The folder of a mixed adapter: tensors in one safetensors file, written as they are computed, and a config for peft.

Owns names and the file. Must not compute. A folder gets its name when it is complete; a kill leaves a hidden folder
beside it, which the next attempt removes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from engine.adapters.folder import PREFIX, WEIGHTS
from engine.adapters.mix_plan import Blend, Form, MixPlan
from engine.adapters.recipe import Share
from engine.adapters.replacing import check_apart, check_free
from engine.errors import EngineError, ExitCode
from engine.jobs.layout import DISK_FULL_ERRNOS
from engine.jobs.staged import staged as _staged
from engine.models.adapter import ADAPTER_CONFIG
from engine.models.config import CONFIG_NAME
from engine.models.folder import TOKENIZER_FILES
from engine.surgery.numbers import Array
from engine.units import format_bytes

_UNWRITABLE_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


def tensor_names(plan: MixPlan, blend: Blend) -> dict[str, tuple[int, ...]]:
    """Every tensor of the result that one blend becomes -> its shape."""
    module = f"{PREFIX}{blend.module}"
    if blend.form is Form.ROWS:
        return {f"{module}.token_adapter.trainable_tokens_delta": (len(blend.indices), blend.shape[1])}
    if blend.form is Form.BIAS:
        return {f"{module}.lora_B.bias": blend.shape}
    if blend.form is Form.WHOLE:
        targeted = blend.name.endswith(".bias") and blend.module in {target.module for target in plan.targets}
        return {f"{module}.base_layer.bias" if targeted else f"{PREFIX}{blend.name}": blend.shape}
    rows, columns = blend.shape
    outputs, inputs = (columns, rows) if blend.transposed else (rows, columns)
    a, b = ("lora_embedding_A", "lora_embedding_B") if blend.embedding else ("lora_A.weight", "lora_B.weight")
    found: dict[str, tuple[int, ...]] = {f"{module}.{a}": (blend.rank, inputs), f"{module}.{b}": (outputs, blend.rank)}
    if plan.dora:
        found[f"{module}.lora_magnitude_vector"] = (outputs,)
    if plan.lora_bias and not any(one.form is Form.BIAS and one.module == blend.module for one in plan.blends):
        found[f"{module}.lora_B.bias"] = (outputs,)
    return found


def peft_config(plan: MixPlan, shares: Sequence[Share], base_name: str, revision: str) -> dict[str, Any]:
    """`adapter_config.json`. Raises EngineError `adapter.mix_form` where no matrix is left to be adapted."""
    targets = plan.targets
    if not targets:
        raise EngineError(
            "adapter.mix_form",
            "The result has no matrix with a low-rank update, and peft reads no such adapter.",
            next_step="Make a model of it: --merged.",
        )
    ranks = [blend.rank for blend in targets]
    usual = max(set(ranks), key=lambda rank: (ranks.count(rank), rank))
    others = {blend.module: blend.rank for blend in targets if blend.rank != usual}
    saved = sorted({b.module for b in plan.blends if b.form is Form.WHOLE and not b.name.endswith(".bias")})
    rows = {blend.module: list(blend.indices) for blend in plan.blends if blend.form is Form.ROWS}
    return {
        "peft_type": "LORA",
        "task_type": plan.task_type or None,
        "base_model_name_or_path": base_name or None,
        "revision": revision or None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "target_modules": [blend.module for blend in targets],
        "bias": _bias(plan, set(saved)),
        "lora_bias": plan.lora_bias,
        "use_rslora": False,
        "use_dora": plan.dora,
        "init_lora_weights": True,
        "fan_in_fan_out": plan.fan_in_fan_out,
        "rank_pattern": others,
        "alpha_pattern": others,
        "modules_to_save": saved or None,
        "trainable_token_indices": rows or None,
    }


def _bias(plan: MixPlan, saved: set[str]) -> str:
    """Which of the base's biases peft has to expect."""
    trained = {b.module for b in plan.blends if b.form is Form.WHOLE and b.name.endswith(".bias")} - saved
    if not trained:
        return "none"
    return "lora_only" if trained <= {blend.module for blend in plan.targets} else "all"


class AdapterFile:
    """`adapter_model.safetensors` of known shapes, all float32; tensors may be written in any order and in pieces."""

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        header, self._offsets, size_bytes = _layout(shapes)
        self._elements = {name: prod(shape) for name, shape in shapes.items()}
        _check_room(folder, size_bytes)
        self._handle = os.open(folder / WEIGHTS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._write(header, 0)

    def __enter__(self) -> AdapterFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._handle)

    def put(self, name: str, values: Array, first_element: int = 0) -> None:
        """Some numbers of a tensor. Raises EngineError `adapter.not_finite`, OSError for a full disk, and IndexError
        for more numbers than the tensor has: they would be another's."""
        if first_element < 0 or first_element + values.size > self._elements[name]:
            raise IndexError(f"numbers {first_element} to {first_element + values.size} of '{name}'")
        if not np.isfinite(values).all():
            raise EngineError(
                "adapter.not_finite",
                f"Mixing gives numbers that are not finite in '{name.removeprefix(PREFIX)}'.",
                cause="The weights are so large that float32 cannot hold the result.",
                next_step="Use smaller weights.",
                exit_code=ExitCode.RUN_FAILED,
            )
        content = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8).data
        self._write(content, self._offsets[name] + 4 * first_element)

    def _write(self, content: bytes | memoryview, offset: int) -> None:
        view, done = memoryview(content), 0
        while done < len(view):
            done += os.pwrite(self._handle, view[done:], offset + done)


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, dict[str, int], int]:
    """(length and header, where each tensor's data begin, size of the file)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    position = 0
    for name, shape in sorted(shapes.items()):
        size = 4 * prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        starts[name] = position
        position += size
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}, len(header) + position


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the file."""
    return _layout(shapes)[2]


def _check_room(folder: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _no_room(folder.parent, needed_bytes)


def _no_room(folder: Path, needed_bytes: int) -> EngineError:
    free = shutil.disk_usage(folder).free
    missing = f"{format_bytes(needed_bytes - free)} are missing." if needed_bytes > free else "The disk filled up."
    return EngineError(
        "disk.full",
        f"The adapter needs {format_bytes(needed_bytes)} in {folder}, and {format_bytes(free)} are free.",
        cause=missing,
        next_step="Free some space, choose an output folder on another disk, or cut the result to a --rank.",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def check_out(out: Path, adapters: Sequence[Path], base: Path | None, *, force: bool) -> None:
    """Raises EngineError `adapter.out_inside_source`, `adapter.out_exists` where something would be overwritten that
    was not meant."""
    sources = [("adapter", adapter) for adapter in adapters] + ([("base", base)] if base is not None else [])
    check_apart(out, sources, "adapter.out_inside_source")
    check_free(out, "adapter.out_exists", force=force)


@contextmanager
def staged(out: Path, needed_bytes: int, *, force: bool) -> Iterator[Path]:
    """An empty hidden folder beside `out` that becomes it when everything went well. Raises EngineError `disk.full`,
    `adapter.out_unwritable`, `output.*`."""
    try:
        with _staged(out, replace=force) as folder:
            yield folder
            check_free(out, "adapter.out_exists", force=force)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise _no_room(out.parent, needed_bytes) from error  # what was written is gone by now, and not counted
        if error.errno in _UNWRITABLE_ERRNOS:
            raise EngineError(
                "adapter.out_unwritable",
                f"Cannot write in {out.parent}.",
                cause=error.strerror or str(error),
                next_step="Choose a folder that you may write to.",
            ) from error
        raise


def write_small_files(folder: Path, config: Mapping[str, Any], shares: Sequence[Share]) -> None:
    """The config, and from the adapters the first tokenizer and a config of a longer window, as they are."""
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    (folder / ADAPTER_CONFIG).write_bytes(text + b"\n")
    for share in shares:
        names = [name for name in TOKENIZER_FILES if (share.adapter.path / name).is_file()]
        for name in names:
            shutil.copyfile(share.adapter.path / name, folder / name)
        if names:
            break
    if own_config(shares):
        shutil.copyfile(shares[0].adapter.path / CONFIG_NAME, folder / CONFIG_NAME)


def own_config(shares: Sequence[Share]) -> bytes:
    """`config.json` of the longer window that the adapters were trained for; empty for none. Raises EngineError
    `adapter.other_base` where they differ."""
    found = [_bytes(share.adapter.path / CONFIG_NAME) for share in shares]
    if len(set(found)) > 1:
        odd = next(share for share, content in zip(shares, found, strict=True) if content != found[0])
        raise EngineError(
            "adapter.other_base",
            f"{shares[0].label} and {odd.label} were trained for different windows.",
            cause=f"An adapter for a longer window has its own {CONFIG_NAME} beside it, and these are not the same.",
            next_step="Mix adapters that were trained for one window.",
        )
    return found[0]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
