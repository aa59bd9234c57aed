"""The probe: half a minute of the job on the very device, before the job.

`python -m engine.rehearsal.probe` reads a ProbeRequest as JSON from stdin and writes a ProbeReply to stdout; lines of
progress begin with "probe: " on stderr. Owns the process and its time: what is measured first, and when to stop. Must
not know formulas, nor what is concluded. The phases are the worker's, in its order, since each can set the peak: data,
loading, measuring and answering, steps, measuring in between.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError
from engine.jobs.probes import Largest, ProbeAnswer, ProbeFailure, ProbeReply, ProbeRequest, Shape
from engine.train.environment import choose_threads, prepare_process, prepare_torch

if TYPE_CHECKING:
    from engine.evaluation.model import LoadedModel
    from engine.rehearsal.gauges import Gauge, Reading
    from engine.rehearsal.probe_job import Rows
    from engine.rehearsal.probe_steps import Asked, Lesson, Teacher, Timing
    from engine.rehearsal.probe_teacher import HeldTeacher
    from engine.train.environment import Device
    from engine.train.trainer import TokenTrainer

PROGRESS = "probe: "
TINY_TOKENS = 8
SHARES = {"measure": 0.2, "job": 0.5, "half": 0.15}
"""Of the time left after loading; the search for the largest gets the rest."""


def main() -> int:
    """Entry point."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=ProbeRequest)
        reply = ProbeReply(answer=_Probe(request).run())
    except EngineError as error:
        reply = ProbeReply(error=ProbeFailure(**error.as_dict()))
    except BaseException as error:  # whatever a library raises is an answer too
        traceback.print_exc()
        reply = ProbeReply(error=_unknown(error))
    with os.fdopen(answer_to, "wb") as out:
        out.write(msgspec.json.encode(reply))
    return 0 if reply.error is None else 2


def _unknown(error: BaseException) -> ProbeFailure:
    from engine.train.failure import explain

    failure = explain(error)
    return ProbeFailure(
        code="probe.failed",
        what="The job could not be tried on this device.",
        cause=f"{failure.what} {failure.cause}".strip(),
        next_step="The formula's estimate stands; --dry-run needs no memory.",
    )


def say(text: str) -> None:
    """A line for whoever waits."""
    sys.stderr.write(f"{PROGRESS}{text}\n")
    sys.stderr.flush()


class _Tried:
    """What one model showed: the whole one, or one of few layers."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self.loading = self.evaluation = self.training = 0.0
        self.context = 0.0
        self.asked: Asked | None = None
        self.largest: Largest | None = None


class _Probe:
    def __init__(self, request: ProbeRequest) -> None:
        self.request = request
        self.began = time.perf_counter()
        self.notes: list[str] = []

    def run(self) -> ProbeAnswer:
        request = self.request
        prepare_process(None)
        say("importing libraries")
        gauge, device = self._device()
        from engine.rehearsal.gauges import workspace_bytes
        from engine.rehearsal.probe_job import prepare_rows
        from engine.train.environment import quiet_libraries

        quiet_libraries()
        rows = prepare_rows(request)
        import torch

        workspace = workspace_bytes(torch.device(device.torch_device))
        depths = () if request.real_weights else request.depths or (request.layers,)
        tried = []
        with tempfile.TemporaryDirectory(prefix="scaler-probe-") as folder:
            for number in range(max(len(depths), 1)):
                share = (number + 1) / max(len(depths), 1)
                depth = depths[number] if depths else 0
                tried.append(self._try(gauge, device, rows, Path(folder), depth, share))
                _give_back(device)
        return self._answer(gauge, device, rows, float(workspace), tuple(depths), tried)

    def _device(self) -> tuple[Gauge, Device]:
        """The gauge is made before anything touches the device, so that it sees the base."""
        import torch

        from engine.rehearsal.gauges import CpuGauge, CudaGauge

        gauge: Gauge = CudaGauge(alone=True) if torch.cuda.is_available() else CpuGauge()
        training = self.request.spec.training
        device = prepare_torch(choose_threads(training.threads), training.dtype)
        if device.torch_device == "mps":
            raise EngineError(
                "probe.device", "The probe cannot measure an Apple GPU yet.", next_step="Use the formula or --dry-run."
            )
        return gauge, device

    def _left(self, share: float = 1.0) -> float:
        """Seconds of the budget, up to `share` of it."""
        return max(self.request.budget_seconds * share - (time.perf_counter() - self.began), 0.0)

    # ── one model ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _try(self, gauge: Gauge, device: Device, rows: Rows, folder: Path, depth: int, share: float) -> _Tried:
        from engine.rehearsal import probe_job, probe_steps

        request, spec, tried = self.request, self.request.spec, _Tried()
        say(f"loading {f'{depth} layers with random weights' if depth else 'the model'}")
        gauge.reset()
        if depth:
            loaded = probe_job.build_cut(request, rows, device, depth)
        else:
            loaded = probe_job.load_whole(request, rows, device)
        tried.loading = float(gauge.read().process)
        self._tiny(loaded, rows, folder)
        if not device.is_cuda:
            tried.context = max(gauge.resting() - probe_job.state_bytes(loaded.model), 0)
        left = self._left(share)
        say("measuring held-out rows and answers")
        gauge.reset()
        tokens = spec.evaluation.max_new_tokens
        tried.asked = probe_steps.measure(loaded, rows, tokens, seconds=SHARES["measure"] * left)
        tried.evaluation = float(gauge.read().process)
        teacher = self._teacher(loaded, rows, device)
        self._steps(tried, loaded, gauge, rows, folder, left, teacher.steps_of if teacher is not None else None)
        if device.is_cuda:
            tried.context = float(gauge.read().context)
        return tried

    def _tiny(self, loaded: LoadedModel, rows: Rows, folder: Path) -> None:
        """The smallest job: loads whatever libraries load on first use, so that the rest is the model's own."""
        from dataclasses import replace

        from engine.rehearsal import probe_steps

        spec = self.request.spec
        small = msgspec.structs.replace(
            spec, training=msgspec.structs.replace(spec.training, batch_size=1, gradient_accumulation=1)
        )
        row = rows.cut(max(TINY_TOKENS, 2))[:1]
        probe_steps.train(loaded, probe_steps.lesson(small, row, TINY_TOKENS), folder, seconds=0.0, most=1)
        few = replace(rows, heldout=row, questions=rows.questions[:1])
        probe_steps.measure_between(loaded, few, 2)

    def _teacher(self, loaded: LoadedModel, rows: Rows, device: Device) -> HeldTeacher | None:
        """As in a run, after the first measurements."""
        if self.request.teacher is None:
            return None
        from engine.rehearsal.probe_teacher import hold_teacher

        say("loading the teacher")
        return hold_teacher(self.request, loaded, rows, device)

    def _steps(
        self,
        tried: _Tried,
        loaded: LoadedModel,
        gauge: Gauge,
        rows: Rows,
        folder: Path,
        left: float,
        teacher: Teacher | None,
    ) -> None:
        from engine.rehearsal import probe_steps

        spec = self.request.spec
        length = spec.data.max_length
        job = probe_steps.lesson(spec, rows.train, length, teacher)
        say(f"training steps of {spec.training.batch_size} x {length} tokens")
        new_tokens = spec.evaluation.max_new_tokens
        between = spec.evaluation.every_steps > 0

        def halfway() -> None:
            tried.training = max(tried.training, float(gauge.read().process))
            if between:
                probe_steps.measure_between(loaded, rows, new_tokens)

        gauge.reset()
        timing, trainer = self._train(loaded, job, folder, SHARES["job"] * left, halfway)
        if timing is not None:
            probe_steps.worst_step(loaded, job)
            reading = gauge.read()
            tried.training = max(tried.training, float(reading.process) if not between else 0.0)
            peak = max(tried.loading, tried.evaluation, float(reading.process))
            tried.shapes.append(_shape(job, timing, reading, peak if _on_cpu(gauge) else 0.0))
        self._half(tried, loaded, gauge, rows, folder, left, teacher)
        say("looking for the largest micro-batch")
        tried.largest = self._largest(loaded, job, gauge)
        del trainer

    def _train(
        self, loaded: LoadedModel, job: Lesson, folder: Path, seconds: float, halfway: object
    ) -> tuple[Timing | None, TokenTrainer | None]:
        """None when the job does not fit: that is an answer, and the search below says what does."""
        import torch

        from engine.rehearsal import probe_steps

        try:
            return probe_steps.train(loaded, job, folder, seconds=seconds, halfway=halfway)  # type: ignore[arg-type]
        except torch.OutOfMemoryError:
            pass
        # Outside the handler: its traceback holds the tensors of the failed step.
        loaded.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        size = job.spec.training.batch_size
        self.notes.append(f"The card ran out of memory in a step of {size} x {job.spec.data.max_length} tokens.")
        return None, None

    def _half(
        self,
        tried: _Tried,
        loaded: LoadedModel,
        gauge: Gauge,
        rows: Rows,
        folder: Path,
        left: float,
        teacher: Teacher | None,
    ) -> None:
        from engine.rehearsal import probe_steps

        spec = self.request.spec
        length = spec.data.max_length // 2
        if length < TINY_TOKENS:
            return
        say(f"training steps of {spec.training.batch_size} x {length} tokens")
        job = probe_steps.lesson(spec, rows.cut(length), length, teacher)
        if not _on_cpu(gauge):
            _empty_cache()
        gauge.reset()
        timing, _ = self._train(loaded, job, folder, SHARES["half"] * left, None)
        if timing is not None:
            # What a CPU process has grown to stays: its resident memory no longer says what the shorter job needs.
            tried.shapes.append(_shape(job, timing, gauge.read(), 0.0))

    def _largest(self, loaded: LoadedModel, job: Lesson, gauge: Gauge) -> Largest | None:
        from engine.rehearsal import probe_limit
        from engine.rehearsal.gauges import CpuGauge

        sequence = max(job.dataset.sequences, key=lambda one: (len(one.input_ids), len(one.targets)))
        cap = self.request.memory_cap_bytes
        seconds = max(self._left(), 2.0)
        if not isinstance(gauge, CpuGauge):
            deadline = time.perf_counter() + seconds
            return probe_limit.largest_on_card(loaded, job, sequence, deadline=deadline, cap_bytes=cap)
        per_token = self.request.bytes_per_token
        return probe_limit.largest_in_ram(
            loaded, job, sequence, gauge, seconds=seconds, cap_bytes=cap, bytes_per_token=per_token
        )

    # ── the answer ────────────────────────────────────────────────────────────────────────────────────────────────
    def _answer(
        self, gauge: Gauge, device: Device, rows: Rows, workspace: float, depths: tuple[int, ...], tried: list[_Tried]
    ) -> ProbeAnswer:
        from engine.rehearsal.probe_depth import carried_on

        first, last = tried[0], tried[-1]
        context = first.context if not device.is_cuda else last.context
        if not rows.real:
            self.notes.append("The job's own rows were not used: random tokens of full length stood in for them.")
        whole = carried_on([one.shapes for one in tried], depths, self.request.layers, context)
        partial = bool(depths) and depths[-1] != self.request.layers
        if partial:
            layers = " and ".join(map(str, depths))
            self.notes.append(f"Tried with {layers} of {self.request.layers} layers and random weights.")
        if last.asked is not None and partial:
            asked_evaluation = asked_generated = 0.0
        else:
            asked_evaluation = last.asked.evaluation_tokens_per_second if last.asked else 0.0
            asked_generated = last.asked.generated_tokens_per_second if last.asked else 0.0
        return ProbeAnswer(
            device=device.name,
            on_cpu=not device.is_cuda,
            context_bytes=context,
            workspace_bytes=workspace,
            shapes=whole,
            evaluation_tokens_per_second=asked_evaluation,
            generated_tokens_per_second=asked_generated,
            evaluation_bytes=last.evaluation,
            training_bytes=last.training,
            loading_bytes=last.loading,
            largest=None if partial else last.largest,
            depths=depths,
            real_data=rows.real,
            notes=tuple(self.notes),
            seconds=time.perf_counter() - self.began,
        )


def _shape(job: Lesson, timing: Timing, reading: Reading, resident: float) -> Shape:
    """`resident` is the process's peak on a CPU; on a card it is reserved and context."""
    low, likely, high = timing.tokens_per_second
    training = job.spec.training
    computed = job.width * training.batch_size * training.gradient_accumulation
    per_step = sum(timing.tokens) / max(len(timing.tokens), 1)
    return Shape(
        batch=training.batch_size,
        sequence=job.width,
        tokens_per_step=per_step / training.gradient_accumulation,
        trained_share=min(sum(timing.trained) / max(sum(timing.tokens), 1), 1.0),
        process_bytes=resident or (float(reading.reserved + reading.context) if reading.reserved else 0.0),
        allocated_bytes=float(reading.allocated),
        reserved_bytes=float(reading.reserved),
        tokens_per_second=likely,
        tokens_per_second_low=low,
        tokens_per_second_high=high,
        steps=len(timing.seconds),
        padding_free=min(per_step / computed, 1.0) if computed else 1.0,
        tokens_per_cpu_second=timing.tokens_per_cpu_second if not reading.reserved else 0.0,
    )


def _on_cpu(gauge: Gauge) -> bool:
    from engine.rehearsal.gauges import CpuGauge

    return isinstance(gauge, CpuGauge)


def _empty_cache() -> None:
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _give_back(device: Device) -> None:
    """The next model finds the memory free."""
    import gc

    gc.collect()
    if device.is_cuda:
        _empty_cache()


if __name__ == "__main__":
    sys.exit(main())
