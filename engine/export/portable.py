"""Whether what a job will make can be exported as it asks, told before the job: refusals, flags and bytes.

Owns these judgements on a spec and the config its result will have. Must not know numpy, torch or weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.context.export import config_after
from engine.context.gguf_support import Finding, what_is_lost
from engine.context.planner import applicable, plan_context
from engine.errors import EngineError
from engine.expansion.packed import quantisation
from engine.export.gguf_tokenizer import tokenizer_for_gguf
from engine.export.runtime import find_runtime, why_none
from engine.extension.spec_window import options_of
from engine.jobs.spec import JobSpec
from engine.jobs.spec_context import AUTO
from engine.jobs.spec_export import Destination
from engine.models.config import text_part
from engine.models.shape import Shape, read_shape
from engine.units import format_bytes

BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.57, "q5_k_m": 5.7, "q4_k_m": 4.9}
"""Per weight, over a whole model; `engine.export.sizes` knows it per matrix."""
_WRITTEN_HERE = ("f32", "f16", "bf16", "q8_0")
_KEY = "export.to"
_ENDS = ("lm_head", "embed_tokens")


def check_portable(spec: JobSpec, folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the user should know before the start. `config` is the model's after growth; `folder` has its tokenizer.

    Raises EngineError `export.*` with the spec's key for what a target cannot represent, and for a k-quant where
    llama.cpp's quantiser is not installed; `merge.quantised_base` for an adapter on packed weights.
    """
    targets = spec.export.to
    _check_packed(spec, config)
    if not any(target in (Destination.GGUF, Destination.OLLAMA) for target in targets):
        return ()
    _require_quantiser(spec)
    notes = list(_of_configs(spec, config))
    try:
        shape = read_shape(text_part(dict(config))[0], "config.json")
        tokenizer_for_gguf(folder, shape.vocabulary)
    except EngineError as error:
        raise _keyed(error) from error
    _check_ends(spec, shape)
    if spec.export.verify and find_runtime() is None:
        notes.append(f"Export: it will not be compared with transformers. {why_none()}")
    return tuple(dict.fromkeys(notes))


def export_bytes(spec: JobSpec, parameters: int, weight_bytes: int = 2) -> int:
    """What [export] adds to the run directory while it works: the files, and the merged model or floats they are made
    of, with `weight_bytes` per weight as in the base."""
    section, adapts = spec.export, spec.task.trains_adapter
    if not section.to:
        return 0
    whole = Destination.HF in section.to or not section.adapter
    total = float(weight_bytes * parameters * (adapts and whole and not spec.output.merge))
    for target in section.to:
        if target is Destination.HF:
            continue  # linked
        total += sum(parameters * BITS[kind] / 8 for kind in section.gguf_types)
        if any(kind not in _WRITTEN_HERE for kind in section.gguf_types):
            total += weight_bytes * parameters
    return round(total)


def size_note(spec: JobSpec, parameters: int) -> str:
    """ "Export: q8_0 about 7.9 GiB"; "" where nothing of a size is written."""
    if not any(target is not Destination.HF for target in spec.export.to):
        return ""
    sizes = (f"{kind} about {format_bytes(parameters * BITS[kind] / 8)}" for kind in spec.export.gguf_types)
    return f"Export: {', '.join(sizes)}."


def _check_packed(spec: JobSpec, config: Mapping[str, Any]) -> None:
    """Every target is made of 16-bit weights, merged or as they are, which a job on packed ones does not have."""
    method = quantisation(config)
    if not (method and spec.export.to and spec.task.trains_adapter):
        return
    from engine.adapters.merge_refusals import plain_name  # beside numpy

    base = plain_name(spec.model.source) or "THE_16_BIT_MODEL"
    raise EngineError(
        "merge.quantised_base",
        f"{_KEY} asks for exports, which are not made of a quantised model, and {spec.model.source} is one.",
        cause=f"Its weights are packed ({method}): an adapter is merged into the 16-bit model, and GGUF files are made "
        "of that.",
        next_step=f"Leave {_KEY} out, and export after the training: scaler-wizard export {spec.export.to[0].value} "
        f"latest --base {shlex.quote(base)}. An adapter trained on the quantised model fits it.",
        key=_KEY,
    )


def _require_quantiser(spec: JobSpec) -> None:
    made = [kind for kind in spec.export.gguf_types if kind not in _WRITTEN_HERE]
    if made and find_runtime() is None:
        raise EngineError(
            "export.no_quantiser",
            f"export.gguf_types has {', '.join(made)}, which llama.cpp's quantiser makes, and that is not here.",
            cause=why_none(),
            next_step="Or take f16, bf16 or q8_0, which are written without it.",
            key="export.gguf_types",
        )


def _check_ends(spec: JobSpec, shape: Shape) -> None:
    """llama.cpp has one tensor for the embedding and the head of a tied base, and no adapter for one use of it."""
    ends = [name for name in spec.adapter.targets if name.rpartition(".")[2] in _ENDS]
    if spec.export.adapter and spec.task.trains_adapter and shape.tied and ends:
        raise EngineError(
            "export.adapter_tied",
            f"export.adapter exports an adapter with {', '.join(ends)}, which llama.cpp has no place for.",
            cause="The base uses one matrix as embedding and as head, and the adapter updates one of the two.",
            next_step="Set export.adapter = false, which exports the merged model, or leave it out of adapter.targets.",
            key="export.adapter",
        )


def _of_configs(spec: JobSpec, config: Mapping[str, Any]) -> Iterator[str]:
    """Findings for the config that the result will have: one, or with context.method = "auto" one per method that may
    win."""
    if not spec.context.extends or spec.context.method != AUTO:
        for finding in _findings(spec, _extended(spec, config, spec.context.method)):
            if finding.lost:
                raise _refusal(finding)
            yield _words(finding)
        return
    lost: dict[str, Finding] = {}
    methods = [
        method.id
        for method, obstacle in applicable(config, spec.context.length)
        if not obstacle and method.exported and not method.needs_search
    ]
    for name in methods:
        fatal = [finding for finding in _findings(spec, _extended(spec, config, name)) if finding.lost]
        lost |= {name: fatal[0]} if fatal else {}
    if lost and len(lost) == len(methods):
        raise _refusal(next(iter(lost.values())))
    if lost:
        yield (
            f"Export: if the race for the longer window chooses {', '.join(lost)}, no GGUF file can be written. "
            "Name context.method to be sure."
        )


def _extended(spec: JobSpec, config: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    if not spec.context.extends:
        return config
    return config_after(config, plan_context(config, spec.context.length, method, options_of(spec), spec.model.source))


def _findings(spec: JobSpec, config: Mapping[str, Any]) -> tuple[Finding, ...]:
    found = [finding for kind in spec.export.gguf_types for finding in what_is_lost(config, kind)]
    return tuple(dict.fromkeys(found))


def _words(finding: Finding) -> str:
    return f"Export: {' '.join(part for part in (finding.what, finding.cause, finding.next_step) if part)}"


def _refusal(finding: Finding) -> EngineError:
    return _keyed(finding.as_error())


def _keyed(error: EngineError) -> EngineError:
    """The same as a matter of the spec: the run is not begun for a file that cannot come of it."""
    return EngineError(
        error.code,
        error.what,
        cause=error.cause,
        next_step=f'{error.next_step} In the spec: export.to = ["hf"], or none.'.strip(),
        exit_code=error.exit_code,
        key=_KEY,
    )
