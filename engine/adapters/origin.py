"""Which weights an adapter was trained on: noted beside it by our own runs, compared later.

Owns `base.json` and the fingerprint. Must not know updates. A fingerprint covers every tensor's name, type, shape and
the first and last bytes of its data: a second for any model, and another set of weights changes it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError
from engine.expansion.packed import quantisation
from engine.jobs.layout import write_atomic
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.headers import TensorHeader, read_headers

if TYPE_CHECKING:
    from engine.adapters.folder import AdapterFolder

ORIGIN = "base.json"
_SAMPLE_BYTES = 4096


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """`base.json`."""

    name: str
    """A hub id, or the folder's name."""
    revision: str = ""
    """The hub's commit."""
    fingerprint: str = ""
    """SHA-256, hexadecimal."""
    packed: str = ""
    """How its weights were packed, "" for plain ones."""
    v: int = 1


def fingerprint(folder: Path) -> str:
    """Of the weights in a model's folder. Raises EngineError `safetensors.*`."""
    hasher = hashlib.sha256()
    for tensor in sorted(read_headers(folder).tensors, key=lambda one: one.name):
        hasher.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
        hasher.update(_ends(tensor))
    return hasher.hexdigest()


def _ends(tensor: TensorHeader) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset_bytes)
        head = file.read(min(_SAMPLE_BYTES, tensor.data_bytes))
        file.seek(tensor.offset_bytes + max(0, tensor.data_bytes - _SAMPLE_BYTES))
        return head + file.read(min(_SAMPLE_BYTES, tensor.data_bytes))


def write_origin(adapter: Path, base: Path, *, name: str, revision: str = "") -> None:
    """Note beside the adapter which weights it belongs to."""
    origin = Origin(name=name, revision=revision, fingerprint=fingerprint(base), packed=packed_as(base))
    write_atomic(adapter / ORIGIN, msgspec.json.format(msgspec.json.encode(origin), indent=2) + b"\n")


def packed_as(base: Path) -> str:
    """The method that packed a folder's weights; "" for plain ones. Raises EngineError `model.config_damaged`."""
    return quantisation(read_json_object(base / CONFIG_NAME, code="model.config_damaged", what="a model config"))


def read_origin(adapter: Path) -> Origin | None:
    """None where nothing readable is noted."""
    try:
        return msgspec.json.decode((adapter / ORIGIN).read_bytes(), type=Origin)
    except (OSError, msgspec.MsgspecError):
        return None


def commit_of(base: Path) -> str:
    """The hub's commit where the folder is a snapshot in its cache, else ""."""
    return base.name if base.parent.name == "snapshots" else ""


def check_origin(adapter: AdapterFolder, base: Path) -> None:
    """Raises EngineError `adapter.other_base` where another set of weights is noted. Of an adapter that was trained on
    packed weights nobody can say whether `base` is what they were packed from; where its shapes agree it is believed.
    """
    origin = read_origin(adapter.path)
    unpacked = origin is not None and bool(origin.packed) and not packed_as(base)
    if origin is not None and origin.fingerprint and not unpacked and origin.fingerprint != fingerprint(base):
        raise EngineError(
            "adapter.other_base",
            f"The adapter in {adapter.path} belongs to other weights than those in {base}.",
            cause=f"Shapes agree, but not the fingerprint that was noted for {origin.name or 'its base'}: another "
            "version of the model, another type of numbers, or a model that was trained further.",
            next_step=f"Give the base it was trained on, or remove {adapter.path / ORIGIN} where you know better.",
        )
    commit, wanted = commit_of(base), adapter.config.revision
    if commit and _is_commit(wanted) and commit != wanted:
        raise EngineError(
            "adapter.other_base",
            f"The adapter in {adapter.path} belongs to another revision of its base.",
            cause=f"It names {wanted[:12]}, the folder is revision {commit[:12]}.",
            next_step=f"Download the revision it names: hf download {adapter.config.base} --revision {wanted}",
        )


def _is_commit(text: str) -> bool:
    return len(text) == 40 and all(character in "0123456789abcdef" for character in text)
