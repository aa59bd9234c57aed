"""The project's founding analysis against the estimator: every figure of its sections 1, 4 and 5, next to ours.

`python -m bench brief` prints the table that ESTIMATES.md holds between its markers; `--write` puts it there. Sentences
are kept by row, so that a figure may move and its reason stays. Must not compute: every figure is the engine's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engine.advise.amounts import BYTES_PER_TOKEN
from engine.estimate.cards import gpu_speed
from engine.estimate.cost import Tariff, estimate_cost, hourly_rent
from engine.estimate.estimate import Estimate
from engine.estimate.memory import estimate_memory
from engine.estimate.speed import RunPlan, estimate_hours
from engine.estimate.state import adapter_weight_bytes, gradient_bytes, optimizer_bytes, weight_bytes
from engine.estimate.storage import DiskPlan, estimate_disk, estimate_host_ram
from engine.estimate.workload import Loss, Method, OptimizerKind, Packing4Bit, Purpose, Workload
from engine.hardware.gpu_profiles import find_gpu_profile
from engine.hardware.machine import Gpu
from engine.hardware.simulate import gpu_from_profile
from engine.models.analyze import analyze
from engine.units import GIB

DOCUMENT = Path(__file__).parents[1] / "ESTIMATES.md"
BEGIN, END = "<!-- brief: begin -->", "<!-- brief: end -->"
LIMIT = 0.20
"""A difference above this needs a sentence."""
WEEK = 168.0
GB = 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the analysis and ours; `low` and `high` are equal where it is not a range."""

    key: str
    section: str
    what: str
    brief: tuple[float, float] | None
    """None: a word or a judgement, nothing to compute with."""
    brief_text: str
    ours: tuple[float, float] | None
    ours_text: str

    @property
    def difference(self) -> float | None:
        """Ours against the nearest end of the analysis's range; 0 where they overlap, None where there is no figure."""
        if self.brief is None or self.ours is None:
            return None
        low, high = self.brief
        if self.ours[0] > high:
            return self.ours[0] / high - 1
        return self.ours[1] / low - 1 if self.ours[1] < low else 0.0


def rows() -> tuple[Row, ...]:
    """Every figure of sections 1, 4 and 5, in the order of the analysis."""
    with _shipped_prices():
        return (*_adapters(), *_today(), *_growth_memory(), *_growth_time(), *_partial(), *_matrix())


# ── the jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────
SMALL, LARGE = analyze("phi-3-mini"), analyze("llama-2-7b")
"""The analysis names both: its 3B is Phi-3-mini (3.8 billion), its 7B Llama 2 (6.7 billion)."""
TOKENS = (2e6, 5e7)
"""A small and a large set for fine-tuning; the analysis says "depending on dataset"."""
LORA = Workload(SMALL, batch=4, sequence=1024, accumulation=4)
QLORA = Workload(LARGE, packing=Packing4Bit.NF4_DOUBLE, batch=4, sequence=1024, accumulation=4)
FULL = Workload(LARGE, Method.FULL, sequence=2048, accumulation=64)
MIXED = replace(FULL, optimizer=OptimizerKind.ADAMW_MIXED)
EIGHT_BIT = replace(FULL, optimizer=OptimizerKind.ADAMW_8BIT)


def _adapters() -> Iterator[Row]:
    base = weight_bytes(replace(FULL, purpose=Purpose.EVALUATE)) / GB
    yield _single("base-checkpoint", "1", "7B base checkpoint", 23, "~23 GB", base, f"{base:.1f} GB (2 B x N)")
    for rank, megabytes in ((8, 8), (64, 64)):
        work = replace(QLORA, rank=rank)
        bytes_ = adapter_weight_bytes(work)
        narrow = adapter_weight_bytes(replace(work, targets=("q_proj", "v_proj"), adapter_bytes=2))
        text = f"{bytes_ / 1e6:.0f} MB (seven linears, fp32; q and v in 16 bits: {narrow / 1e6:.0f} MB)"
        yield _single(f"adapter-{rank}", "1", f"LoRA adapter, r={rank}", megabytes, f"~{megabytes} MB",
                      bytes_ / 1e6, text)  # fmt: skip
    for rank in (8, 64):
        share = adapter_weight_bytes(replace(QLORA, rank=rank)) / 4 / LARGE.parameters
        yield Row(f"overhead-{rank}", "1", f"parameter overhead, r={rank}", (0.0, 0.005), "< 0.5 %",
                  (share, share), f"{100 * share:.2f} %")  # fmt: skip


def _today() -> Iterator[Row]:
    for key, title, work, card, vram, ram, disk in (
        ("3b", "3B LoRA", LORA, "RTX 4060 Ti 16GB", (8, 12), 16, 50),
        ("7b", "7B (QLoRA)", QLORA, "RTX 4090 24GB", (16, 24), 32, 100),
    ):
        yield _memory(f"{key}-vram", "4.1", f"{title}, VRAM", vram, work)
        host = estimate_host_ram(work)
        yield _single(f"{key}-ram", "4.1", f"{title}, system RAM", ram, f"{ram} GB", host.likely / GIB,
                      f"{host.likely / GIB:.1f} GiB (up to {host.high / GIB:.1f})")  # fmt: skip
        storage = estimate_disk(work, DiskPlan(work.architecture, False, merged=True, gguf=True))
        yield _single(f"{key}-disk", "4.1", f"{title}, storage", disk, f"{disk} GB", storage.likely / GB,
                      f"{storage.likely / GB:.0f} GB with a merged model and a GGUF file")  # fmt: skip
        smallest, least = (12, replace(work, batch=1)) if key == "3b" else (16, work)
        need = estimate_memory(least)
        yield Row(f"{key}-card", "4.1", f"{title} on a {smallest} GB card", (0.0, smallest), "feasible",
                  (need.high / GIB, need.high / GIB), f"at most {need.high / GIB:.1f} GiB")  # fmt: skip
        hours = [_hours(work, card, 1, tokens).likely for tokens in TOKENS]
        text = f"{_time(hours[0])} to {_time(hours[1])} for 2 to 50 million tokens on an {card}"
        yield Row(f"{key}-time", "4.1", f"{title}, time", (1.0, 7 * 24.0), "hours to days",
                  (hours[0], hours[1]), text)  # fmt: skip


def _growth_memory() -> Iterator[Row]:
    fp32 = weight_bytes(replace(FULL, compute_bytes=4)) / GB
    yield _single("full-fp32", "4.2", "7B weights, FP32", 28, "~28 GB", fp32, f"{fp32:.1f} GB")
    for key, what, figure, ours in (
        ("full-weights", "7B weights, BF16", 14, weight_bytes(FULL)),
        ("full-gradients", "gradients, BF16", 14, gradient_bytes(FULL)),
        ("full-optimizer", "AdamW states", 28, optimizer_bytes(FULL)),
    ):
        yield _single(key, "4.2", what, figure, f"~{figure} GB", ours / GB, f"{ours / GB:.1f} GB")
    plain, kept = (_tokens_bytes(replace(FULL, checkpointing=on)) / GB for on in (True, False))
    yield Row("full-activations", "4.2", "activations, 1 x 2,048 tokens", (4, 8), "~4-8 GB", (plain, kept),
              f"{plain:.1f} GB with checkpointing, {kept:.1f} GB without")  # fmt: skip
    yield _memory("full-total", "4.2", "total VRAM, all in BF16", (60, 70), FULL)
    yield _memory("full-mixed", "4.2", "total VRAM, mixed precision with fp32 master", (60, 70), MIXED)
    for key, cards, card, size in (
        ("full-2xa100-40", 2, "A100 40GB", 40),
        ("full-4xa100-80", 4, "A100 80GB", 80),
        ("full-8x4090", 8, "RTX 4090 24GB", 24),
    ):
        memory = estimate_memory(replace(FULL, shards=cards))
        text = f"{_gib(memory)} on each card"
        yield Row(key, "4.2", f"{cards} x {card} are enough", (0.0, size), f"<= {size} GB each",
                  (memory.likely / GIB, memory.likely / GIB), text)  # fmt: skip


def _growth_time() -> Iterator[Row]:
    low, high = (BYTES_PER_TOKEN * tokens / 1e12 for tokens in (1e11, 5e11))
    yield Row("corpus-tokens", "4.2", "pretraining corpus", None, "100B-500B tokens", None, "taken as given")
    yield Row("corpus-disk", "4.2", "corpus on disk, TB", (0.5, 2.0), "500 GB-2 TB", (low, high),
              f"{low:.2f} to {high:.2f} TB of text at {BYTES_PER_TOKEN} B per token")  # fmt: skip
    work = replace(MIXED, shards=4, batch=4, accumulation=16)
    least, most = (_hours(work, "A100 80GB", 4, tokens).likely for tokens in (1e11, 5e11))
    yield Row("full-weeks", "4.2", "continuation training on 4 x A100", (1.0, 4.0), "1-4 weeks",
              (least / WEEK, least / WEEK), f"{least / WEEK:.0f} weeks for the 100B tokens asked for")  # fmt: skip
    yield Row("full-convergence", "4.2", "full convergence on 4 x A100", (4.0, 12.0), "4-12 weeks",
              (most / WEEK, most / WEEK), f"{most / WEEK:.0f} weeks for 500B tokens")  # fmt: skip
    rent = hourly_rent(gpu_speed(_gpu("A100 80GB")), Tariff(True, cards=4))
    yield Row("rent-4xa100", "4.2", "4 x A100 80GB, per hour", (20, 40), "$20-40", (rent.likely, rent.likely),
              f"${rent.likely:.2f} (${rent.low:.2f} to ${rent.high:.2f})")  # fmt: skip
    four_weeks = Estimate(4 * WEEK, 4 * WEEK, 4 * WEEK, "hours", estimate_memory(FULL).origin)
    cost = estimate_cost(four_weeks, gpu_speed(_gpu("A100 80GB")), Tariff(True, cards=4))
    yield Row("four-weeks", "4.2", "four weeks of it", (13_440, 26_880), "$13,440-26,880", (cost.likely, cost.likely),
              f"${cost.likely:,.0f} (${cost.low:,.0f} to ${cost.high:,.0f})")  # fmt: skip


def _partial() -> Iterator[Row]:
    yield _memory("partial-vram", "4.3", "partial expansion to 7B, VRAM", (24, 48), EIGHT_BIT)
    work = replace(EIGHT_BIT, shards=2, batch=4, accumulation=8)
    for key, tokens, name in (("partial-1b", 1e9, "1B"), ("partial-10b", 1e10, "10B")):
        hours = _hours(work, "RTX A6000 48GB", 2, tokens).likely
        yield Row(key, "4.3", f"partial expansion, {name} tokens", (24.0, 14 * 24.0), "days to 2 weeks",
                  (hours, hours), f"{_time(hours)} on 2 x RTX A6000")  # fmt: skip
    single = estimate_memory(EIGHT_BIT).likely / GIB
    hosted = estimate_memory(replace(EIGHT_BIT, optimizer=OptimizerKind.ADAMW, optimizer_on_host=True)).likely / GIB
    yield Row("partial-4090", "4.3", "RTX 4090 with checkpointing", (0.0, 24.0), "marginally feasible",
              (single, single), f"{single:.1f} GiB; {hosted:.1f} GiB with the optimizer in host RAM")  # fmt: skip
    yield Row("partial-tokens", "4.3", "data set", None, "1B-10B tokens", None, "taken as given")


def _matrix() -> Iterator[Row]:
    yield _memory("matrix-lora", "5", "LoRA on 3B", (8, 12), LORA)
    yield _memory("matrix-rank", "5", "LoRA with large r (128) on 3B", (12, 16), replace(LORA, rank=128))
    longer = replace(LORA, batch=1, sequence=16_384, rank=32, loss=Loss.CHUNKED)
    yield _memory("matrix-context", "5", "context extension of 3B, 16,384 tokens", (12, 24), longer)
    yield _memory("matrix-partial", "5", "partial expansion", (24, 48), EIGHT_BIT)
    total = _memory("matrix-full", "5", "full expansion", (60, 80), MIXED)
    yield replace(total, brief=(60, float("inf")), brief_text="60-80 GB+")
    asked = Workload(LARGE, Method.FULL, batch=1, sequence=4096, purpose=Purpose.GENERATE)
    memory = estimate_memory(asked)
    yield Row("matrix-inference", "5", "pretrained 7B, inference on consumer hardware", (0.0, 24.0), "yes",
              (memory.likely / GIB, memory.likely / GIB), f"{_gib(memory)} in 16 bits with 4,096 tokens")  # fmt: skip
    yield Row("matrix-capacity", "5", "effective capacity", None, "+5-15 %, +15-30 %, ~70-85 %, ~95-100 %", None,
              "not estimated")  # fmt: skip
    yield Row("matrix-cost", "5", "training cost", None, "$ to $$$$", None, "dollars, in `scaler-wizard matrix`")


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────
SENTENCES = {
    "base-checkpoint": "6.7 billion parameters take 2 bytes each (27 GB in fp32); 23 GB fits no usual format.",
    "adapter-8": "8 MB is an adapter on q and v in 16 bits; the wizard adapts all seven linears and peft keeps fp32.",
    "adapter-64": "As for r=8: the analysis counts q and v only, in 16 bits.",
    "overhead-64": "Adapter size grows with the rank; with all seven linears r=64 adds more than half a per cent.",
    "3b-vram": "Micro-batches of 4 x 1,024 tokens without a chunked loss; a smaller batch needs less.",
    "3b-ram": "Beside a GPU only libraries and one checkpoint file at a time are held; more RAM helps the file cache.",
    "3b-disk": "Base, merged model, GGUF and two small checkpoints are all there is; the rest is head-room.",
    "3b-time": "The analysis has no rule behind its range.",
    "7b-vram": "QLoRA keeps the base at about half a byte per parameter; 16 GB and more is LoRA in 16 bits.",
    "7b-ram": "As for the 3B: safetensors are mapped file by file, never held whole.",
    "7b-disk": "Base, merged model, GGUF and two small checkpoints are all there is; the rest is head-room.",
    "7b-time": "The analysis has no rule behind its range.",
    "full-activations": "With checkpointing only layer inputs and logits are kept, without it every layer's tensors.",
    "full-total": "The analysis adds the same four terms; ours adds CUDA context and what the allocator reserves.",
    "full-mixed": "Mixed precision keeps fp32 master weights and states: 16 bytes and more per parameter, not 8; the "
    "analysis calls its all-BF16 sum mixed precision.",
    "full-2xa100-40": "Half of all states is near 40 GB before any activation; two cards of 40 GB do not hold it.",
    "full-4xa100-80": "Sharded over four cards the states leave more room than needed.",
    "full-8x4090": "Sharded over eight cards the states leave room for longer sequences.",
    "corpus-disk": "Counted as JSONL text; packed token ids would take 2 to 4 bytes each.",
    "full-weeks": "8 x 6.7e9 FLOPs per token with checkpointing, on four cards at about half their peak: its weeks "
    "would buy a quarter of its own minimum corpus at best.",
    "full-convergence": "As above, for five times the tokens: the analysis's time and its data do not go together.",
    "rent-4xa100": "$5 to $10 per card and hour is a large cloud's list price; the snapshot has marketplaces and GPU "
    "clouds of 2026.",
    "four-weeks": "The hours are the same (672); the difference is the price per card.",
    "partial-vram": "8-bit AdamW needs 6 bytes per parameter; offloading the optimizer or freezing old blocks helps.",
    "partial-1b": "Two cards without NVLink spend as long on exchanging weights as on computing.",
    "partial-10b": "Ten times the tokens take ten times as long; two weeks buy one to two billion.",
    "partial-4090": "Weights, gradients and 8-bit states are 6 bytes per parameter: 40 GB before any activation.",
    "3b-card": "Micro-batch 1 without a chunked loss.",
    "7b-card": "QLoRA at micro-batch 4.",
    "matrix-lora": "As in 4.1.",
    "matrix-rank": "Rank 128 adds adapter, gradients and states of about a gigabyte each.",
    "matrix-context": "Checkpointed activations grow with the length, the chunked loss keeps logits small.",
    "matrix-partial": "As in 4.3.",
    "matrix-full": "As in 4.2.",
    "matrix-inference": "Fits a 24 GB card in 16 bits, and an 8 GB card in 4.",
    "corpus-tokens": "A choice, not an estimate.",
    "partial-tokens": "A choice, not an estimate.",
    "matrix-capacity": "A judgement without a measurement behind it; the wizard shows it marked as such.",
    "matrix-cost": "The wizard prints ranges of dollars instead.",
}  # fmt: skip
"""Row -> why ours differs; every difference above `LIMIT` must have one."""


def table() -> str:
    """The markdown table. Raises KeyError for a difference above `LIMIT` without a sentence."""
    lines = [
        "| section | figure | analysis | ours | difference | why |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows():
        cells = (row.section, row.what, row.brief_text, row.ours_text, _difference(row), _why(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def needs_sentence(row: Row) -> bool:
    """Whether a row differs by more than `LIMIT`, or cannot be compared."""
    return row.difference is None or abs(row.difference) > LIMIT


def _why(row: Row) -> str:
    return SENTENCES[row.key] if needs_sentence(row) else ""


def _difference(row: Row) -> str:
    if row.difference is None:
        return "-"
    if row.difference == 0:
        return "within"
    if row.difference > 1:
        return f"{row.difference + 1:.1f} x"
    return f"{100 * row.difference:+.0f} %"


def _single(key: str, section: str, what: str, brief: float, brief_text: str, ours: float, ours_text: str) -> Row:
    return Row(key, section, what, (brief, brief), brief_text, (ours, ours), ours_text)


def _memory(key: str, section: str, what: str, brief: tuple[float, float], work: Workload) -> Row:
    memory = estimate_memory(work)
    likely = memory.likely / GIB
    return Row(key, section, what, brief, f"{brief[0]:g}-{brief[1]:g} GB", (likely, likely), _gib(memory))


def _gib(memory: Estimate) -> str:
    return f"{memory.likely / GIB:.1f} GiB ({memory.low / GIB:.1f} to {memory.high / GIB:.1f})"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


def _tokens_bytes(work: Workload) -> float:
    """What depends on tokens at the peak: activations, logits and loss."""
    names = ("activations", "logits and loss")
    return sum(part.amount for part in estimate_memory(work).breakdown if part.name in names)


def _hours(work: Workload, card: str, cards: int, tokens: float) -> Estimate:
    return estimate_hours(work, gpu_speed(_gpu(card)), RunPlan(tokens, cards=cards))


def _gpu(card: str) -> Gpu:
    profile = find_gpu_profile(card)
    assert profile is not None, card
    return gpu_from_profile(profile)


@contextmanager
def _shipped_prices() -> Iterator[None]:
    """The table is made from the shipped snapshot, whatever this machine has refreshed."""
    before = os.environ.get("SCALER_WIZARD_HOME")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["SCALER_WIZARD_HOME"] = empty
        try:
            yield
        finally:
            if before is None:
                del os.environ["SCALER_WIZARD_HOME"]
            else:
                os.environ["SCALER_WIZARD_HOME"] = before


def document_table() -> str:
    """What ESTIMATES.md holds between its markers."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    return rest.partition(END)[0].strip()


def main() -> None:
    """Print the table; with `--write`, put it into ESTIMATES.md."""
    text = table()
    if "--write" in sys.argv:
        head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        tail = rest.partition(END)[2]
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    print(f"{BEGIN}\n\n{text}\n\n{END}")


if __name__ == "__main__":
    main()
