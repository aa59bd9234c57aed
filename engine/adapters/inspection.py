"""What an adapter is, in figures: kind, base, size, and how much it changes every matrix.

Owns the report and finding adapters in folders. Must not change anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.adapters.base import Base, check_base, read_base
from engine.adapters.changes import Change, load_factors
from engine.adapters.factors import product_norm
from engine.adapters.folder import Adapted, AdapterFolder, last_names
from engine.adapters.kinds import Start
from engine.adapters.methods import chunks
from engine.adapters.mix_compute import Squares
from engine.adapters.origin import packed_as, read_origin
from engine.adapters.tensors import read_float, read_rows
from engine.errors import EngineError
from engine.models.adapter import base_of_adapter, is_adapter
from engine.models.config import CONFIG_NAME

_DEPTH = 3


class MatrixReport(msgspec.Struct, frozen=True, kw_only=True):
    """One adapted matrix."""

    module: str
    rank: int
    scale: float
    update_norm: float | None = None
    """Frobenius norm; None where it cannot be known without the base."""
    relative_norm: float | None = None
    """Over the norm of the base's matrix."""


class AdapterReport(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter."""

    path: str
    kind: str
    rank: int
    """The largest."""
    ranks: tuple[int, ...]
    alpha: float
    matrices: int
    modules: tuple[str, ...]
    """Last parts of names."""
    layers: int
    parameters: int
    size_bytes: int
    dtypes: tuple[str, ...]
    base: str
    """As it names it."""
    revision: str = ""
    fingerprint: str = ""
    """SHA-256 of the weights it was trained on, where that was noted."""
    base_folder: str = ""
    """Where its base was found."""
    belongs: bool | None = None
    """Whether that is its base; None where none was found."""
    why_not: str = ""
    whole: tuple[str, ...] = ()
    """Tensors of the base that it replaces."""
    token_rows: int = 0
    biases: str = "none"
    own_config: bool = False
    """A config of a longer window lies beside it."""
    init: str = ""
    task_type: str = ""
    peft_version: str = ""
    notes: tuple[str, ...] = ()
    per_matrix: tuple[MatrixReport, ...] = ()
    update_norm: float | None = None
    """Over all matrices together."""


def inspect_adapter(adapter: AdapterFolder, base: Path | None = None, *, norms: bool = True) -> AdapterReport:
    """`base`: found by the adapter's own words where it is not given. Raises EngineError `safetensors.*`,
    `adapter.not_finite`; a base that is another one's is said in the report."""
    config = adapter.config
    folder, why_not = _base_folder(adapter, base)
    readable = folder is not None and not why_not and not packed_as(folder)
    found = read_base(folder) if folder is not None and readable else None
    per_matrix = tuple(_matrix(one, found) for one in adapter.adapted) if norms else ()
    squares = [one.update_norm for one in per_matrix]
    whole_norm = float(np.sqrt(sum(n * n for n in squares if n is not None))) if None not in squares else None
    origin = read_origin(adapter.path)
    return AdapterReport(
        path=str(adapter.path),
        kind=config.kind,
        rank=max((one.rank for one in adapter.adapted), default=0),
        ranks=tuple(sorted({one.rank for one in adapter.adapted})),
        alpha=config.alpha,
        matrices=len(adapter.adapted),
        modules=last_names(one.module for one in adapter.adapted),
        layers=len({number for one in adapter.adapted if (number := _layer(one.module)) is not None}),
        parameters=adapter.parameters,
        size_bytes=adapter.size_bytes,
        dtypes=tuple(sorted({tensor.dtype for tensor in adapter.tensors})),
        base=config.base or (origin.name if origin is not None else ""),
        revision=config.revision or (origin.revision if origin is not None else ""),
        fingerprint=origin.fingerprint if origin is not None else "",
        base_folder=str(folder) if folder is not None else "",
        belongs=None if folder is None else not why_not,
        why_not=why_not,
        whole=tuple(one.name for one in adapter.whole),
        token_rows=sum(len(one.indices) for one in adapter.rows),
        biases="its own" if any(one.bias is not None for one in adapter.adapted) else config.bias.value,
        own_config=(adapter.path / CONFIG_NAME).is_file(),
        init=config.init,
        task_type=config.task_type,
        peft_version=config.peft_version,
        notes=tuple(_notes(adapter)),
        per_matrix=per_matrix,
        update_norm=whole_norm if norms else None,
    )


def _base_folder(adapter: AdapterFolder, given: Path | None) -> tuple[Path | None, str]:
    """(the base's folder, why it is not the adapter's)."""
    folder = given
    if folder is None:
        try:
            folder = base_of_adapter(adapter.path)
        except EngineError:
            return None, ""
    try:
        check_base(adapter, folder)
    except EngineError as error:
        if error.code != "adapter.other_base":
            raise
        return folder, " ".join(filter(None, (error.what, error.cause)))
    return folder, ""


def _matrix(adapted: Adapted, base: Base | None) -> MatrixReport:
    change = Change(adapted=adapted)
    stored = base.find(adapted.weight) if base is not None else None
    if stored is None and change.needs_base:
        return MatrixReport(module=adapted.module, rank=adapted.rank, scale=adapted.scale)
    factors = load_factors(change, read_float(stored) if stored is not None and change.needs_base else None)
    if factors.gain is None:
        norm = product_norm(factors.left, factors.right)
    else:
        squares = Squares()
        for begin, end in chunks(factors.shape):
            rows = factors.rows(begin, end)
            squares.add(rows, rows)
        norm = float(np.sqrt(squares.true))
    weight = 0.0
    if stored is not None:
        of_base = Squares()
        for begin, end in chunks(stored.shape):
            rows = read_rows(stored, begin, end)
            of_base.add(rows, rows)
        weight = float(np.sqrt(of_base.true))
    return MatrixReport(
        module=adapted.module,
        rank=adapted.rank,
        scale=adapted.scale,
        update_norm=norm,
        relative_norm=norm / weight if weight > 0 else None,
    )


def _notes(adapter: AdapterFolder) -> Iterator[str]:
    config = adapter.config
    if config.start is not Start.NONE:
        yield (
            f"{config.kind}: peft changes the base's weights whenever it loads this adapter, so it cannot share a base "
            "with others there. Mixed alone at weight 1 it becomes plain LoRA of twice the rank, which can."
        )
    if config.start_drawn:
        yield (
            f"It began with a randomised decomposition ({config.init}), which peft draws anew at every load: what it "
            "computes is only known as well as that decomposition is exact. The exact one is used here."
        )
    if (adapter.path / CONFIG_NAME).is_file():
        yield f"It was trained for a longer window: its base needs the {CONFIG_NAME} that lies beside it."
    if adapter.config.ensure_weight_tying:
        yield "Embedding and head were trained as one matrix."


def _layer(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)


def find_adapters(folders: Iterable[Path]) -> Iterator[Path]:
    """Folders that hold an adapter: those given, and those in them."""
    for folder in folders:
        yield from _in(folder, _DEPTH)


def _in(folder: Path, depth: int) -> Iterator[Path]:
    if is_adapter(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        entries: Sequence[Path] = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith("."):
            yield from _in(entry, depth - 1)
