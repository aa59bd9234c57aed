"""A trained model as a complete Hugging Face folder: what learned from memory, everything else from the files it had.

Owns the folder's contents. Must not know tasks. Tensors that did not learn are copied byte for byte, also those that
were held in 4 bits while others learned; nothing is written that plain transformers could not load.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.expansion.maps import identity
from engine.expansion.recipe import Recipe, Source
from engine.jobs.staged import staged
from engine.models.config import CONFIG_NAME
from engine.models.folder import check_folder
from engine.models.headers import INDEX_NAME, TensorHeader, read_headers
from engine.proof.skeleton import Places, as_stored
from engine.surgery.carry import carry_over
from engine.surgery.reader import TensorReader
from engine.surgery.shards import index_bytes, split
from engine.surgery.writer import Writing, write_shards
from engine.train.grown_model import GrownModel

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_model(
    target: Path,
    source: Path,
    grown: GrownModel,
    *,
    shard_bytes: int,
    full_precision: bool,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `target`, whole or not at all. `values`: what learned by its name, where the model has only a share of it.
    With `full_precision` what learned keeps its 32 bits (a stage follows);
    without, matrices have the type that the config names, and vectors the type they had."""
    tensors = read_headers(source).tensors
    config = check_folder(source)
    named = _STORED.get(str(config.get("dtype") or config.get("torch_dtype")), "F32")
    learned = StoredValues(grown.model, values or dict(grown.ever_learning()), tensors)

    def dtype_of(tensor: TensorHeader) -> str:
        if tensor.name not in learned:
            return tensor.dtype
        return "F32" if full_precision else named if len(tensor.shape) > 1 else tensor.dtype

    learned.dtypes = {tensor.name: dtype_of(tensor) for tensor in tensors}
    with staged(target) as staging:
        write_weights(staging, tensors, learned, shard_bytes)
        shutil.copyfile(source / CONFIG_NAME, staging / CONFIG_NAME)
        carry_over(source, staging)


def write_weights(folder: Path, tensors: Sequence[TensorHeader], values: StoredValues, shard_bytes: int) -> None:
    """Shards and index: each tensor from `values` where it is there, else copied from its file."""
    recipes = [
        Recipe(tensor.name, tensor.shape, values.dtypes[tensor.name], (Source(tensor.name),), _as_it_was(tensor.shape))
        for tensor in tensors
    ]
    shards = split(recipes, shard_bytes)
    with TensorReader(tensors) as reader:
        write_shards(shards, Writing(folder, reader, 0, values, lambda _: None, lambda _: None))
    if len(shards) > 1:
        (folder / INDEX_NAME).write_bytes(index_bytes(shards))


def _as_it_was(shape: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(identity(extent) for extent in shape)


class StoredValues(Mapping[str, bytes]):
    """Stored name -> bytes of a value in memory, made when asked for; parameters are split as the files have them."""

    def __init__(self, model: Any, values: Mapping[str, Tensor], tensors: Sequence[TensorHeader]) -> None:
        self._model, self._values = model, values
        self.dtypes = {tensor.name: tensor.dtype for tensor in tensors}
        """Stored name -> the type it is written in."""
        places = Places(model)
        tied = _tied_names(model, values)
        self._parameters: dict[str, str] = {}
        for tensor in tensors:
            parameter = places.parameter_of(tensor.name) or ""
            parameter = tied.get(parameter, parameter)
            if parameter in values:
                self._parameters[tensor.name] = parameter
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    def parameter_of(self, name: str) -> str:
        """The parameter that a stored tensor is (a part of)."""
        return self._parameters[name]

    def __getitem__(self, name: str) -> bytes:
        parameter = self._parameters[name]
        if self._last[0] != parameter:
            split_up = as_stored(self._model, {parameter: self._values[parameter].detach()})
            self._last = (
                parameter,
                {**split_up, **({name: next(iter(split_up.values()))} if len(split_up) == 1 else {})},
            )
        value = self._last[1][name].to("cpu", _TYPES[self.dtypes[name]]).contiguous()
        return value.reshape(-1).view(torch.uint8).numpy().tobytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def _tied_names(model: Any, values: Mapping[str, Any]) -> dict[str, str]:
    """Another name of a parameter (a tied output head that the file stores all the same) -> the one it learns under."""
    every = [*model.named_parameters(remove_duplicate=False)]
    first = {id(parameter): name for name, parameter in reversed(every) if name in values}
    return {name: first[id(parameter)] for name, parameter in every if id(parameter) in first}
