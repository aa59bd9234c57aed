"""Believable figures of a teacher, a mix and exports, and runs that had them, for screens and pages."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from engine.jobs import events as ev
from engine.jobs.card import Card, TeacherFigures
from engine.jobs.export_report import Agreement, ExportedFile, ExportReport
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL
from engine.jobs.mix_report import LayerError, MixReport
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import DistillationSection
from engine.jobs.spec_export import Destination, ExportSection
from engine.jobs.store import create_run
from tests.support.golden_runs import Golden, _write_runner, golden_card, golden_spec, worker_events

TEACHER = TeacherFigures(
    name="qwen3-1.7b",
    held="cached",
    parameters=1_720_000_000,
    loss="forward_kl, temperature 2, 50 % labels",
    task_loss=0.3104,
    exact_match=0.94,
    cached_tokens=412_000,
    cached_bytes=160_300_000,
    rollout_tokens=12_400,
    rollout_seconds=40.0,
)
MIX = MixReport(
    method="ties",
    adapters=("facts", "tone"),
    weights=(0.7, -0.35),
    layers=(
        LayerError(module="model.layers.0.self_attn.q_proj", rank=16, relative_error=0.041, update_norm=1.2),
        LayerError(module="model.layers.1.mlp.up_proj", rank=16, relative_error=0.002, update_norm=0.8),
    ),
    relative_error=0.031,
    rank=16,
    out="output/adapter",
    size_bytes=1_900_000,
    density=0.5,
    identity_error=3.1e-7,
    score_before=1.561,
    score=1.204,
    swept=40,
    check_before=1.570,
    check_score=1.231,
    seconds=3.2,
    peak_rss_bytes=310_000_000,
)


def agreement(change: float = 0.0, *, same: float = 1.0, stops: bool = True) -> Agreement:
    """Of one file; `change` of the perplexity."""
    return Agreement(
        runtime="llama.cpp 0.3.36",
        prompts=4,
        tokens_compared=812,
        same_top_token=same,
        first_difference=-1 if same == 1.0 else 11,
        largest_logit_difference=0.01,
        perplexity=7.5 * (1 + change),
        reference_perplexity=7.5,
        same_tokens=True,
        same_prompt=True,
        stops=stops,
    )


EXPORT = ExportReport(
    destination="gguf",
    source="output/merged",
    files=(
        ExportedFile(path="/x/export/demo-f16.gguf", size_bytes=6_812_000, kind="f16", agreement=agreement()),
        ExportedFile(
            path="/x/export/demo-q4_k_m.gguf", size_bytes=2_110_000, kind="q4_k_m",
            agreement=agreement(0.031, same=0.962),
        ),
        ExportedFile(
            path="/x/export/demo-q8_0.gguf", size_bytes=3_712_000, kind="q8_0",
            not_verified="llama-cpp-python is not installed here.",
        ),
    ),
    flags=("Older programs do not know its sliding window.",),
    next_step="llama-cli -m /x/export/demo-q4_k_m.gguf",
)  # fmt: skip


def result_card(run_dir: Path) -> Card:
    """A card with a teacher and an export."""
    return msgspec.structs.replace(golden_card(run_dir), teacher=TEACHER, exports=(EXPORT,))


def mix_card(run_dir: Path) -> Card:
    """A card of a job that mixed."""
    nothing = {"steps": 0, "tokens": 0, "trained_tokens": 0, "training_seconds": 0.0}
    unmeasured = {"loss_curve": (), "eval_curve": (), "samples": (), "predicted": (), "before": None, "after": None}
    return msgspec.structs.replace(golden_card(run_dir), task="mix", mix=MIX, **nothing, **unmeasured)


def taught_spec() -> JobSpec:
    """A student with a teacher, and where it shall run."""
    return msgspec.structs.replace(
        golden_spec(Golden(name="taught")),
        distillation=DistillationSection(
            teacher="Qwen/Qwen3-1.7B", temperature=2.0, on_policy=0.25, top_k=64, hidden_weight=0.1
        ),
        export=ExportSection(to=(Destination.GGUF, Destination.OLLAMA), gguf_types=("q8_0", "q4_k_m")),
    )


def write_taught(golden: Golden, *, now: float | None = None) -> Path:
    """A run with a teacher: parts of the loss, answers of the student's own."""
    run_dir = create_run(taught_spec())
    now = time.time() if now is None else now
    began = now - 12 - golden.steps * golden.step_seconds
    _write_runner(run_dir, golden, began, now)
    with JournalWriter(run_dir / JOURNAL) as journal:
        for event in worker_events(golden, began):
            if isinstance(event, ev.Step):
                parts = {"labels": event.loss, "teacher": 0.4 * event.loss, "hidden": 0.031}
                event = msgspec.structs.replace(event, losses=parts)
            journal.write(event)
            if isinstance(event, ev.Plan):
                journal.write(
                    ev.Teacher(t=event.t, name="qwen3-1.7b", held="nf4", parameters=1_720_000_000)
                )  # fmt: skip
            if isinstance(event, ev.Step) and event.step % 4 == 0:
                journal.write(
                    ev.Rollout(
                        t=event.t, step=event.step, answers=4, tokens=310, seconds=1.0,
                        prompt="What is river glass made of?", text="Sand from the lower Varn, melted with salt.",
                    )
                )  # fmt: skip
    return run_dir


def write_phase(name: str, detail: str, done: int, total: int, spec: JobSpec) -> Path:
    """A live run in one phase."""
    run_dir = create_run(spec)
    now = time.time()
    _write_runner(run_dir, replace(Golden(), steps=0), now - 30, now)
    with JournalWriter(run_dir / JOURNAL) as journal:
        journal.write(ev.Start(t=now - 20, attempt=1, pid=os.getpid(), device="cpu, 2 threads"))
        journal.write(ev.Phase(t=now - 1, name=name, detail=detail, done=done, total=total))
    return run_dir
