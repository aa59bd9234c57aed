"""The base under an adapter: its tensors by the names an adapter uses, and whether the two belong together.

Owns the differences between a module's name and its tensor's in the files. Must not compute. Only headers are read, and
of the weights as much as their fingerprint takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from engine.adapters.origin import check_origin
from engine.errors import EngineError
from engine.models.config import CONFIG_NAME, read_json_object, text_part
from engine.models.headers import TensorHeader, read_headers
from engine.models.weights import EMBEDDING_NAMES, HEAD_NAMES

if TYPE_CHECKING:
    from engine.adapters.folder import AdapterFolder, Whole

_ALIASES = (
    ("model.language_model.", "language_model.model."),
    ("transformer.", ""),
    ("model.", ""),
    ("", "model."),
)
"""Beginning of a module's name -> of its tensor's in files that other versions of transformers wrote."""


@dataclass(frozen=True, slots=True)
class Base:
    """A model's folder."""

    folder: Path
    tensors: dict[str, TensorHeader]
    tied: bool
    """Whether the head is the embedding."""

    def find(self, name: str) -> TensorHeader | None:
        """The stored tensor that a module's weight or bias is; of a tied head the embedding's."""
        found = self.tensors.get(name)
        if found is not None:
            return found
        for module, stored in _ALIASES:
            if name.startswith(module) and (found := self.tensors.get(stored + name[len(module) :])) is not None:
                return found
        return self.embedding if self.tied and name.endswith(HEAD_NAMES) else None

    def holds(self, stored: TensorHeader, shape: tuple[int, ...]) -> bool:
        """Whether a stored weight has this shape; of one in 4 bits, which lies flat, whether it has as many numbers."""
        if self._is_flat(stored):
            return stored.data_bytes == (prod(shape) + 1) // 2
        return stored.shape == shape

    def size_words(self, stored: TensorHeader) -> str:
        """ "of shape (64, 64)", "4,096 numbers in 4 bits"."""
        return f"{2 * stored.data_bytes:,} numbers in 4 bits" if self._is_flat(stored) else f"of shape {stored.shape}"

    def _is_flat(self, stored: TensorHeader) -> bool:
        return f"{stored.name}.absmax" in self.tensors

    @property
    def embedding(self) -> TensorHeader | None:
        """The input embedding."""
        return next((t for name, t in self.tensors.items() if name.endswith(EMBEDDING_NAMES)), None)


def read_base(folder: Path) -> Base:
    """Raises EngineError `safetensors.*`, `model.*`."""
    tree = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    part, _ = text_part(tree)
    tensors = {tensor.name: tensor for tensor in read_headers(folder).tensors}
    tied = part.get("tie_word_embeddings", tree.get("tie_word_embeddings", True))
    has_head = any(name.endswith(HEAD_NAMES) for name in tensors)
    return Base(folder, tensors, bool(tied) and not has_head if tied is not None else not has_head)


def check_base(adapter: AdapterFolder, base: Path) -> None:
    """Whether `adapter` was made for the model in `base`. Raises EngineError `adapter.other_base` with the first module
    that differs and both shapes, or where the recorded fingerprint or revision is another one's."""
    found = read_base(base)
    differences = list(_differences(adapter, found))
    if differences:
        more = f" and {len(differences) - 1} more differ" if len(differences) > 1 else " differs"
        raise EngineError(
            "adapter.other_base",
            f"The adapter in {adapter.path} does not belong to the model in {base}: {differences[0][0]}{more}.",
            cause=differences[0][1],
            next_step=_way_out(adapter),
        )
    check_origin(adapter, found.folder)


def resized(adapter: AdapterFolder, base: Base) -> Iterator[tuple[str, int, int]]:
    """(name, its rows, the base's) of every whole copy with a vocabulary of its own."""
    for whole in adapter.whole:
        stored = base.find(whole.name)
        if stored is not None and stored.shape != whole.tensor.shape:
            yield whole.name, whole.tensor.shape[0], stored.shape[0]


def _differences(adapter: AdapterFolder, base: Base) -> Iterator[tuple[str, str]]:
    for one in adapter.adapted:
        stored = base.find(one.weight)
        if stored is None:
            yield one.module, "The model has no such module."
        elif not base.holds(stored, one.stored_shape):
            yield one.module, _shapes("was made for a weight", one.stored_shape, base.size_words(stored))
    for whole in adapter.whole:
        stored = base.find(whole.name)
        if stored is None:
            yield whole.name, "The model has no such tensor."
        elif not (base.holds(stored, whole.tensor.shape) or _is_resized(whole, stored)):
            yield whole.name, _shapes("replaces it by one", whole.tensor.shape, base.size_words(stored))
    for rows in adapter.rows:
        stored = base.find(rows.weight)
        if stored is None:
            yield rows.module, "The model has no such module."
        elif stored.shape[1] != rows.tensor.shape[1] or max(rows.indices, default=0) >= stored.shape[0]:
            yield (
                rows.module,
                f"The adapter replaces row {max(rows.indices, default=0)} of width {rows.tensor.shape[1]}, the model's "
                f"embedding has the shape {stored.shape}.",
            )


def _is_resized(whole: Whole, stored: TensorHeader) -> bool:
    """Whether only the vocabulary has another size."""
    return whole.name.endswith((*EMBEDDING_NAMES, *HEAD_NAMES)) and stored.shape[1:] == whole.tensor.shape[1:]


def _shapes(does: str, adapter: tuple[int, ...], model: str) -> str:
    return f"The adapter {does} of shape {adapter}, the model's is {model}."


def _way_out(adapter: AdapterFolder) -> str:
    named = adapter.config.base
    return f"Give the base that it names: {named}." if named else "Give the base that it was trained on."
