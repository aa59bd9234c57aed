"""Models for tasks that train whole weights: which parameters learn, in which type everything is held.

Owns the choice of what learns. Must not know optimizers or the loop. What learns is float32, as adapters are; what is
frozen stays in the compute type, or in 4 bits where every parameter of a module is old. A widened matrix cannot be
split over two types, so with "qlora_grown" it is held and trained whole in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import Certificate
from engine.jobs.spec import JobSpec, Task
from engine.models.headers import read_headers
from engine.proof.skeleton import Places, empty_model
from engine.train import model as models
from engine.train.environment import Device
from engine.train.parts import Kind, Part, parts_of

_LEARNING = {
    Task.FULL: {Kind.OLD, Kind.NEW, Kind.MIXED},
    Task.NEW_BLOCKS: {Kind.NEW},
    Task.NEW_COORDINATES: {Kind.NEW, Kind.MIXED},
    Task.QLORA_GROWN: {Kind.NEW, Kind.MIXED},
}


@dataclass(frozen=True, slots=True)
class GrownModel:
    """A model whose own weights learn."""

    model: Any
    parts: Mapping[str, Part]
    task: Task
    joins_later: bool
    """Old parameters learn from some step on (new_coordinates that unfreezes)."""
    trainable: tuple[str, ...] = ()
    """Patterns of the names that learn; empty is all that the task trains."""

    def learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that learn at the start."""
        return self._of(_LEARNING[self.task])

    def ever_learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that learn at any time: what a checkpoint has to hold."""
        return self._of(_LEARNING[Task.FULL] if self.joins_later else _LEARNING[self.task])

    def _of(self, kinds: set[Kind]) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if self.parts[name].kind in kinds and self._is_meant(name):
                yield name, parameter

    def _is_meant(self, name: str) -> bool:
        return not self.trainable or any(fnmatchcase(name, pattern) for pattern in self.trainable)


def load_grown(spec: JobSpec, folder: Path, device: Device, certificate: Certificate | None) -> GrownModel:
    """The model in `folder` with what learns switched on. Raises EngineError `train.nothing_new` when nothing would."""
    parts = parts_of(folder, certificate)
    task = spec.task
    joins_later = task is Task.NEW_COORDINATES and spec.training.unfreeze_after > 0
    _require_something(task, parts, folder)
    whole = task is Task.FULL or joins_later
    request = models.BaseRequest(
        folder,
        spec.quantization_kind,
        spec.quantization.double,
        torch.float32 if whole else device.compute_dtype,
        device.torch_device,
        unpacked=_unpacked(folder, parts) if spec.quantization_kind != "none" else (),
    )
    model = models.load_base(request)
    # The Trainer refuses models quantised as a whole unless adapters learn; here nothing that learns is packed.
    model.is_quantized = False
    _require_matches(spec.training.trainable, model)
    grown = GrownModel(model, parts, task, joins_later, spec.training.trainable)
    for _, parameter in grown.ever_learning():
        parameter.data = parameter.data.float()
    if not whole:
        _restore_precision(folder, model, dict(grown.learning()))
    for _, parameter in grown.learning():
        parameter.requires_grad_(True)
    if spec.training.gradient_checkpointing:
        _checkpoint_activations(model, offload=spec.training.offload_activations)
    return grown


def _require_matches(patterns: tuple[str, ...], model: Any) -> None:
    """Raises EngineError `train.nothing_matches` for a pattern that names nothing."""
    names = [name for name, _ in model.named_parameters()]
    for number, pattern in enumerate(patterns, 1):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise EngineError(
                "train.nothing_matches",
                f'training.trainable[{number}] = "{pattern}" matches no parameter of the model.',
                cause=f"Its parameters are called {names[0]}, {names[len(names) // 2]}, {names[-1]} and the like; a "
                "head that is tied to the embeddings goes by their name.",
                next_step='Write patterns such as "*.mlp.*"; * stands for anything.',
                exit_code=ExitCode.RUN_FAILED,
            )


def _require_something(task: Task, parts: Mapping[str, Part], folder: Path) -> None:
    kinds = {part.kind for part in parts.values()}
    if kinds & _LEARNING[task]:
        return
    widened = Kind.MIXED in kinds
    raise EngineError(
        "train.nothing_new",
        f'task = "{task.value}" would train nothing of {folder.name}.',
        cause="Growth only widened its matrices; no tensor is wholly new." if widened else "Nothing in it is new.",
        next_step=f'Set task = "{"new_coordinates" if widened else "full"}".',
        exit_code=ExitCode.RUN_FAILED,
    )


def _unpacked(folder: Path, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Modules that must stay out of 4 bits: the output head, and every linear one with anything new in it."""
    skeleton = empty_model(folder, torch.bfloat16)
    head = skeleton.get_output_embeddings()
    return tuple(
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear)
        and (module is head or any(parts[f"{name}.{own}"].kind is not Kind.OLD for own in _own(module, name, parts)))
    )


def _own(module: nn.Module, name: str, parts: Mapping[str, Part]) -> list[str]:
    return [own for own, _ in module.named_parameters(recurse=False) if f"{name}.{own}" in parts]


@torch.no_grad()
def _restore_precision(folder: Path, model: Any, learning: Mapping[str, nn.Parameter]) -> None:
    """Loading rounded everything to the compute type; what learns gets the digits back that its file has."""
    places = Places(model)
    for tensor in read_headers(folder).tensors:
        parameter = learning.get(places.parameter_of(tensor.name) or "")
        if parameter is not None and tensor.dtype == "F32" and tensor.shape == tuple(parameter.shape):
            parameter.copy_(_read(tensor.file, tensor.name))


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        value: Tensor = file.get_tensor(name)
        return value


def _checkpoint_activations(model: Any, *, offload: bool) -> None:
    """Activation checkpointing without transformers' own hook on the embeddings.

    That hook makes their output require a gradient, whether anything below the first learning layer does or not; every
    frozen layer would then be run again in the backward pass, and differentiated, for nothing.
    """
    models.checkpoint_activations(model, offload=offload)
    model.disable_input_require_grads()
