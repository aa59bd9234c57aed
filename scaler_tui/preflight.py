"""The fit check of a spec before it starts headless: the same verdict the wizard shows.

Owns the refusal. The figures are the engine's.
"""

from __future__ import annotations

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec
from engine.units import format_bytes
from scaler_tui import output


def check_fit(spec: JobSpec, *, force: bool) -> JobSpec:
    """`spec` with this machine's prediction in it. Raises EngineError DOES_NOT_FIT unless `force`."""
    from engine.advise.fit import single_device
    from engine.advise.plan import predict
    from engine.data.load import survey
    from engine.hardware.detect import detect
    from engine.models.analyze import analyze
    from engine.models.resolve import resolve_model

    machine = detect()
    ref = resolve_model(spec.model.source, revision=spec.model.revision)
    if ref.path is None:
        raise EngineError(
            "model.no_weights",
            f"'{spec.model.source}' names a known shape, not weights that can be trained.",
            next_step="Give a folder or a hub id in [model] source.",
        )
    report = survey(spec.data, ref.path)
    for warning in report.warnings:
        output.note(f"Data: {warning}")
    architecture = analyze(spec.model.source, revision=spec.model.revision)
    prediction = predict(spec, architecture, machine, tokens_per_epoch=report.train.tokens)
    free = single_device(machine).free_bytes
    if prediction.memory_bytes_low > free and not force:
        raise EngineError(
            "fit.no",
            f"This job does not fit: it needs {format_bytes(prediction.memory_bytes_low)} or more, "
            f"{format_bytes(free)} are free.",
            cause=f"Estimated by {prediction.origin} for {machine.label}.",
            next_step='Use task = "qlora", a smaller batch or max_length, gradient_checkpointing, or a smaller model; '
            "--force starts it all the same.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    if prediction.memory_bytes_high > free:
        output.note(f"Tight: up to {format_bytes(prediction.memory_bytes_high)} needed, {format_bytes(free)} free.")
    return msgspec.structs.replace(spec, prediction=prediction)
