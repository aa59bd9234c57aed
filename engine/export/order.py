"""What is to be exported, where to and how: what a command or a job hands to the exporting process.

Owns the shape, the names of the files that come of it, and reading it. Must not know formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.export.finished import check_replaceable
from engine.jobs.export_report import ExportedFile, ExportReport
from engine.jobs.spec_export import GGUF_TYPES, Destination

EXPORTS = "output/export"
"""In a run directory: one folder per destination."""


class ExportOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One export."""

    destination: Destination
    source: str
    """A model's folder, or an adapter's."""
    out: str
    """The folder that appears; with `one_file` the file itself."""
    name: str
    """Of the files; see `file_name`."""
    base: str = ""
    """The base's folder, where `source` is an adapter."""
    run_dir: str = ""
    """The run that made it: card, spec and held-out rows are read there."""
    types: tuple[str, ...] = ("q8_0",)
    """gguf, ollama: of GGUF_TYPES; () with `adapter` writes no base."""
    adapter: bool = False
    """gguf, ollama: the adapter by itself."""
    imatrix: str = ""
    verify: bool = True
    force: bool = False
    """Replace what an earlier export left at `out`."""
    keep_failed: bool = False
    """Give a result its name though it failed its comparison, or could not be compared."""
    one_file: bool = False
    made: tuple[ExportReport, ...] = ()
    """Earlier exports of the same run: their GGUF files are linked instead of made again."""

    @property
    def out_path(self) -> Path:
        return Path(self.out)

    @property
    def is_adapter(self) -> bool:
        """Whether the source is one; it is exported merged, or by itself."""
        return bool(self.base)

    def made_file(self, kind: str) -> ExportedFile | None:
        """A file of an earlier export that is this one's, with its absolute path."""
        for report in self.made:
            is_adapters = any(file.kind == "adapter" for file in report.files)
            for file in report.files:
                path = Path(self.run_dir) / file.path
                if file.kind == kind and path.suffix == ".gguf" and is_adapters == self.adapter and path.is_file():
                    return msgspec.structs.replace(file, path=str(path))
        return None

    @property
    def needs_model(self) -> bool:
        """Whether anything is still to be made of weights."""
        kinds = [*self.types, *(["adapter"] if self.adapter else [])]
        return self.destination is not Destination.GGUF or any(self.made_file(kind) is None for kind in kinds)

    @property
    def holds_weights(self) -> bool:
        """Whether GGUF files are written at all."""
        return self.destination is not Destination.HF


def file_name(text: str) -> str:
    """`text` as a name that every file system and program takes: "demo: my run" as "demo-my-run"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def gguf_name(order: ExportOrder, kind: str) -> str:
    """The name of one file, in the way that llama.cpp's users write it: "demo.Q4_K_M.gguf". The base of an adapter that
    is a file by itself is "demo.base.Q4_K_M.gguf": it has learnt nothing, and the merged model has the other name."""
    return f"{base_name(order) if order.adapter else order.name}.{kind.upper()}.gguf"


def base_name(order: ExportOrder) -> str:
    """Of an adapter's untuned base."""
    return f"{order.name}.base"


def adapter_name(order: ExportOrder) -> str:
    """The name of the adapter's file."""
    return f"{order.name}.adapter.gguf"


def largest_first(kinds: Iterable[str]) -> tuple[str, ...]:
    """GGUF types without repetitions, those that others can be made of first; unknown ones, to be refused, last."""
    order = {kind: place for place, kind in enumerate(GGUF_TYPES)}
    return tuple(sorted(dict.fromkeys(kind.lower() for kind in kinds), key=lambda kind: order.get(kind, len(order))))


def check_order(order: ExportOrder) -> None:
    """Raises EngineError `export.type`, `export.no_adapter`, and as `check_target` does."""
    unknown = [kind for kind in order.types if kind not in GGUF_TYPES]
    if unknown:
        raise EngineError(
            "export.type", f"There is no GGUF type '{unknown[0]}' here.", next_step=f"One of {', '.join(GGUF_TYPES)}."
        )
    if order.adapter and not order.is_adapter:
        raise EngineError(
            "export.no_adapter",
            f"{order.source} is a whole model, not an adapter.",
            next_step="Leave --adapter out, or name an adapter's folder or a run that trained one.",
        )
    check_target(order)


def check_target(order: ExportOrder) -> None:
    """Raises EngineError `export.out` where the output would take the place of what is read, `export.exists` without
    `force`, `export.foreign` for what no export made."""
    out = order.out_path.resolve()
    read = [*(Path(word) for word in (order.source, order.base, order.run_dir, order.imatrix) if word), Path.cwd()]
    for path in read:
        if path.resolve().is_relative_to(out):
            raise EngineError(
                "export.out",
                f"{order.out} cannot be the output: {path} is there, which stays.",
                next_step="Name a new folder or file with --out.",
            )
    if not order.out_path.exists():
        return
    if not order.force:
        raise EngineError(
            "export.exists",
            f"{order.out} exists already.",
            cause="Nothing is overwritten.",
            next_step="Choose another name with --out, or replace an earlier export with --force.",
        )
    check_replaceable(order.out_path, one_file=order.one_file)


def read_order(path: Path) -> ExportOrder:
    """The order that another process left."""
    return msgspec.json.decode(path.read_bytes(), type=ExportOrder)
