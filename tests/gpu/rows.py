"""Measurements as lines of CSV, in the columns of published measurements and some of our own after them.

Owns the columns, their words and appending. Must not know how anything was measured.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from engine.estimate.rehearsal import DryRun
from engine.estimate.workload import Method, OptimizerKind, Packing4Bit, Purpose, Workload
from engine.rehearsal.orders import Measurement
from engine.units import GIB, MIB
from tests.gpu.grid import Configuration
from tests.gpu.predictions import Formula, dry_allocated

PUBLISHED_COLUMNS = (
    "id", "source", "location", "source_commit", "quality", "use", "framework", "stack", "model", "params_b", "method",
    "base_dtype", "quant", "adapter_dtype", "lora_rank", "lora_targets", "trainable_params", "micro_batch", "seq_len",
    "seq_kind", "grad_ckpt", "optimizer", "attn_impl", "loss_impl", "compile", "n_gpu", "parallel", "gpu", "mem_metric",
    "mem_value", "mem_unit", "mem_gib", "alloc_gib", "reserved_gib", "context_mib", "throughput", "throughput_unit",
    "step_seconds", "total_time", "notes",
)  # fmt: skip
"""The format of files of published measurements, which the score tool reads."""
OWN_COLUMNS = (
    "date", "driver", "trained_share", "masked", "requested_gib", "resting_gib", "inactive_split_mib", "workspace_mib",
    "process_gib", "process_source", "retries", "step_fastest", "step_slowest", "formula_alloc_gib",
    "formula_reserved_gib", "formula_process_gib", "formula_low_gib", "formula_high_gib", "formula_phase",
    "dry_alloc_gib", "dry_phase", "probe_process_gib", "formula_alloc_error", "formula_reserved_error",
    "formula_process_error", "dry_alloc_error", "probe_process_error",
)  # fmt: skip
COLUMNS = PUBLISHED_COLUMNS + OWN_COLUMNS
SOURCE = "scaler-wizard make gpu-check"
_OPTIMIZERS = {
    OptimizerKind.ADAMW_8BIT: "bitsandbytes AdamW 8-bit",
    OptimizerKind.PAGED_ADAMW_8BIT: "bitsandbytes paged AdamW 8-bit",
    OptimizerKind.ADAMW_MIXED: "AdamW fused, mixed precision (fp32 weights and states)",
    OptimizerKind.SGD: "SGD",
}


@dataclass(frozen=True, slots=True)
class Result:
    """One configuration with what was said and what was found; `problem` says why something is missing."""

    configuration: Configuration
    formula: Formula
    measured: Measurement | None = None
    dry: DryRun | None = None
    probe_process: float = 0.0
    problem: str = ""

    @property
    def errors(self) -> dict[str, float]:
        """Predicted / measured - 1 by column, where both are known."""
        if self.measured is None or self.measured.out_of_memory:
            return {}
        found = self.measured
        pairs = {
            "formula_alloc_error": (self.formula.allocated, found.allocated),
            "formula_reserved_error": (self.formula.reserved, found.reserved),
            "formula_process_error": (self.formula.process, found.process),
            "dry_alloc_error": (dry_allocated(self.configuration, self.dry) if self.dry else 0.0, found.allocated),
            "probe_process_error": (self.probe_process, found.process),
        }
        return {name: said / was - 1 for name, (said, was) in pairs.items() if said and was}


def line_of(result: Result, number: int, date: str) -> dict[str, str]:
    """One line; empty where nothing is known."""
    found, work = result.measured, result.configuration.work
    assert found is not None
    line = {**_what(result, found, number, date), **_settings(work), **_figures(result, found)}
    line |= {name: f"{value:+.4f}" for name, value in result.errors.items()}
    return {name: line.get(name, "") for name in COLUMNS}


def _what(result: Result, found: Measurement, number: int, date: str) -> dict[str, str]:
    configuration, versions = result.configuration, found.versions
    names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    ours = configuration.work.stack.id == "scaler-wizard"
    return {
        "id": f"gpu-{date}-{number}",
        "source": SOURCE,
        "location": "tests/gpu/grid.py",
        "quality": "A",
        "use": "calibration",
        "framework": "scaler-wizard worker" if ours else "transformers+peft (stock loss and forward)",
        "stack": " / ".join(f"{name} {versions[name]}" for name in names if name in versions),
        "model": configuration.model.name,
        "params_b": f"{found.parameters / 1e9:.3f}" if found.parameters else "",
        "method": _method(configuration),
        "trainable_params": str(found.trained or ""),
        "gpu": f"{found.card} ({found.total // MIB} MiB visible)",
        "notes": f"{configuration.title}; random weights; capability {found.capability}"
        + (f"; OUT OF MEMORY in {found.out_of_memory}" if found.out_of_memory else ""),
        "date": date,
        "driver": found.driver,
    }


def _method(configuration: Configuration) -> str:
    work = configuration.work
    if work.purpose is not Purpose.TRAIN:
        return "evaluation (inference)"
    if work.method is Method.NEW_BLOCKS:
        return f"{work.trained_layers} new blocks"
    if work.method is Method.FULL:
        return "full FT"
    return "QDoRA" if work.dora and work.packed else "DoRA" if work.dora else configuration.method


def _settings(work: Workload) -> dict[str, str]:
    adapter = work.method is Method.ADAPTER and work.purpose is Purpose.TRAIN
    packing = {Packing4Bit.NONE: "none", Packing4Bit.NF4: "nf4 block64 no double-quant"}
    plain = "AdamW foreach" if work.foreach else "AdamW fused"
    return {
        "base_dtype": "bf16",
        "quant": packing.get(work.packing, "nf4 block64 double-quant"),
        "adapter_dtype": ("bf16" if work.adapter_bytes == 2 else "fp32") if adapter else "",
        "lora_rank": str(work.rank) if adapter else "",
        "lora_targets": " ".join(work.targets) if adapter else "",
        "micro_batch": str(work.batch),
        "seq_len": str(work.sequence),
        "seq_kind": "exact, packed texts: a mask reaches attention" if work.masked else "exact",
        "grad_ckpt": "yes" if work.checkpointing else "no",
        "optimizer": _OPTIMIZERS.get(work.optimizer, plain),
        "attn_impl": work.attention.value,
        "loss_impl": f"logits of the trained positions (share {work.trained_share:g})"
        if work.stack.selective_head
        else "HF CausalLM loss (full logits)",
        "compile": "no",
        "n_gpu": "1",
        "parallel": "none",
        "trained_share": f"{work.trained_share:g}",
        "masked": "yes" if work.masked else "no",
    }


def _figures(result: Result, found: Measurement) -> dict[str, str]:
    said = result.formula
    failed = bool(found.out_of_memory)
    dry = dry_allocated(result.configuration, result.dry) if result.dry else 0.0
    return {
        "mem_metric": "OOM" if failed else f"allocated, reserved and process ({found.process_source or 'not read'})",
        "mem_value": "" if failed else _mib(found.process),
        "mem_unit": "OOM" if failed else "MiB",
        "mem_gib": "" if failed else _gib(found.process),
        "alloc_gib": "" if failed else _gib(found.allocated),
        "reserved_gib": "" if failed else _gib(found.reserved),
        "context_mib": _mib(found.context),
        "throughput": f"{found.tokens_per_second:.1f}" if found.tokens_per_second else "",
        "throughput_unit": "tokens/s" if found.tokens_per_second else "",
        "step_seconds": _seconds(found.step_seconds),
        "step_fastest": _seconds(found.fastest_seconds),
        "step_slowest": _seconds(found.slowest_seconds),
        "requested_gib": _gib(found.requested),
        "resting_gib": _gib(found.resting),
        "inactive_split_mib": _mib(found.inactive_split),
        "workspace_mib": _mib(found.workspace),
        "process_gib": _gib(found.process),
        "process_source": found.process_source,
        "retries": str(found.retries),
        "formula_alloc_gib": _gib(said.allocated),
        "formula_reserved_gib": _gib(said.reserved),
        "formula_process_gib": _gib(said.process),
        "formula_low_gib": _gib(said.low),
        "formula_high_gib": _gib(said.high),
        "formula_phase": said.phase,
        "dry_alloc_gib": _gib(dry),
        "dry_phase": result.dry.stretch if result.dry else "",
        "probe_process_gib": _gib(result.probe_process),
    }


def _gib(value: float) -> str:
    return f"{value / GIB:.4f}" if value else ""


def _mib(value: float) -> str:
    return f"{value / MIB:.2f}" if value else ""


def _seconds(value: float) -> str:
    return f"{value:.5f}" if value else ""


def slug(card: str) -> str:
    """A card's name as a file name: "NVIDIA H100 80GB HBM3" is "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") or "unknown-card"


def append(path: Path, lines: list[dict[str, str]]) -> None:
    """Add lines after those that are there; a new file begins with the header, and an old one must have the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(encoding="utf-8", newline="") as file:
            header = tuple(next(csv.reader(file), ()))
        if header != COLUMNS:
            raise ValueError(f"{path} has other columns; move it away, nothing was written to it")
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines)


def next_number(path: Path, date: str) -> int:
    """The number after the last one of that date in the file."""
    if not path.exists():
        return 1
    with path.open(encoding="utf-8", newline="") as file:
        ids = [line["id"] for line in csv.DictReader(file)]
    numbers = [int(one.rpartition("-")[2]) for one in ids if one.startswith(f"gpu-{date}-")]
    return max(numbers, default=0) + 1
