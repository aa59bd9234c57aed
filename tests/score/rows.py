"""One line of a measurements file as typed values, and what of it was measured.

Owns the columns of the file. Must not know formulas. Text keeps its words; later modules read them by meaning.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError
from engine.hardware.gpu_profiles import GpuProfile, find_gpu_profile
from engine.units import GIB, MIB

_NEEDED = ("id", "source", "framework", "model", "method", "gpu", "mem_metric", "mem_gib")


@dataclass(frozen=True, slots=True)
class Row:
    """One published measurement. Text is lower case except for names that are shown."""

    id: str
    source: str
    use: str
    quality: str
    framework: str
    stack: str
    model: str
    published_b: float | None
    method: str
    base_dtype: str
    quant: str
    adapter_dtype: str
    rank: int | None
    targets: str
    batch: int | None
    sequence: int | None
    sequence_kind: str
    checkpointing: str
    optimizer: str
    attention: str
    loss: str
    compiled: str
    gpus: int
    parallel: str
    gpu: str
    metric: str
    unit: str
    memory_bytes: float | None
    allocated_bytes: float | None
    reserved_bytes: float | None
    context_bytes: float | None
    tokens_per_second: float | None
    throughput_unit: str
    step_seconds: float | None
    notes: str

    @property
    def out_of_memory(self) -> bool:
        """The run ended for want of memory."""
        return self.unit.strip() == "oom" or self.metric.strip() == "oom"

    @property
    def frontier(self) -> bool:
        """The row says which length fits into a budget, not what a length takes."""
        return "budget" in self.metric or self.use == "frontier"


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes on one card, by what was read; None where it was not."""

    allocated: float | None = None
    reserved: float | None = None
    process: float | None = None

    @property
    def anything(self) -> bool:
        """Whether there is a figure to compare with."""
        return self.allocated is not None or self.reserved is not None or self.process is not None


def read_rows(path: Path) -> tuple[Row, ...]:
    """Every line of the file. Raises EngineError `score.file` when it cannot be read or is of another form."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError("score.file", f"{path} cannot be read.", cause=str(error)) from error
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise EngineError(
            "score.file",
            f"{path} has no column {', '.join(missing)}.",
            next_step="Give a file with the columns of measured_memory.csv.",
        )
    return tuple(_row(line, index) for index, line in enumerate(lines, start=2))


def measured_of(row: Row) -> Measured:
    """What was read: allocated, reserved or the whole process.

    "peak active" counts what tensors hold; a "reserved" figure is the allocator's; where the page does not say, it is
    taken as what nvidia-smi shows. ms-swift prints torch.cuda.max_memory_reserved. A sum over cards is divided.
    """
    metric = row.metric
    if row.frontier or row.out_of_memory:
        return Measured()
    value = row.memory_bytes
    if value is not None and re.search(r"\bsum\b|\btotal over\b|all gpus", metric):
        value /= max(row.gpus, 1)
    process = reserved = None
    allocated = row.allocated_bytes
    if "process" in metric:
        process = value
    elif re.search(r"reserved", metric):
        reserved = value
    elif re.search(r"alloc|active", metric):
        allocated = allocated if allocated is not None else value
    elif "swift" in row.framework or "swift" in row.source.lower():
        reserved = value
    else:
        process = value
    reserved = row.reserved_bytes if row.reserved_bytes is not None else reserved
    return Measured(allocated, reserved, process)


def card_bytes(row: Row) -> float | None:
    """Memory of one of the row's cards: as its text says it is visible, else from the catalogue, else as sold."""
    visible = re.search(r"([\d,]{4,})\s*mib visible", row.gpu.lower())
    if visible:
        return float(visible[1].replace(",", "")) * MIB
    profile = card_profile(row)
    if profile is not None:
        return float(profile.visible_bytes) or None
    sold = _sold_gib(row.gpu)
    return sold * GIB if sold else None


def card_profile(row: Row) -> GpuProfile | None:
    """The catalogue's entry for the row's card, when its memory agrees with what the text says."""
    name = re.sub(r"^\s*\d+\s*x\s*", "", re.sub(r"\([^)]*\)", " ", row.gpu)).strip()
    sold = _sold_gib(row.gpu)
    profile = find_gpu_profile(name) or find_gpu_profile(re.sub(r"(?i)\b(sxm\d?|pcie|nvl|dgx|-)\b", " ", name))
    return profile if profile and (sold is None or abs(profile.vram_bytes / GIB - sold) < 2) else None


def _sold_gib(text: str) -> float | None:
    sold = re.search(r"(\d{1,3}(?:\.\d+)?)\s*gi?b", text.lower())
    return float(sold[1]) if sold else None


def _row(line: dict[str, str | None], number: int) -> Row:
    def text(name: str) -> str:
        return (line.get(name) or "").strip()

    def words(name: str) -> str:
        return text(name).lower()

    return Row(
        id=text("id") or f"line {number}",
        source=text("source") or "source not named",
        use=words("use"),
        quality=text("quality"),
        framework=words("framework"),
        stack=words("stack"),
        model=text("model"),
        published_b=_number(text("params_b")),
        method=words("method"),
        base_dtype=words("base_dtype"),
        quant=words("quant"),
        adapter_dtype=words("adapter_dtype"),
        rank=_whole(text("lora_rank")),
        targets=words("lora_targets"),
        batch=_whole(text("micro_batch")),
        sequence=_whole(text("seq_len")),
        sequence_kind=words("seq_kind"),
        checkpointing=words("grad_ckpt"),
        optimizer=words("optimizer"),
        attention=words("attn_impl"),
        loss=words("loss_impl"),
        compiled=words("compile"),
        gpus=_whole(text("n_gpu")) or 1,
        parallel=words("parallel"),
        gpu=text("gpu"),
        metric=words("mem_metric"),
        unit=words("mem_unit"),
        memory_bytes=_gib(text("mem_gib")),
        allocated_bytes=_gib(text("alloc_gib")),
        reserved_bytes=_gib(text("reserved_gib")),
        context_bytes=_scaled(text("context_mib"), MIB),
        tokens_per_second=_number(text("throughput")),
        throughput_unit=words("throughput_unit"),
        step_seconds=_number(text("step_seconds")),
        notes=words("notes"),
    )


def _number(text: str) -> float | None:
    """The first number in the text, or None."""
    found = re.search(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return float(found[0].replace(",", "")) if found else None


def _whole(text: str) -> int | None:
    value = _number(text)
    return int(value) if value is not None else None


def _gib(text: str) -> float | None:
    return _scaled(text, GIB)


def _scaled(text: str, unit: int) -> float | None:
    value = _number(text)
    return None if value is None else value * unit
