"""The adapter folded into full weights: a model that plain transformers loads, its difference to the adapter measured.

`merge_run(run_dir)` works during a run and any time after it; `python -m engine.train.merge RUN_DIR` does the same.
Owns `output/merged` of a run, and the comparison. Must not know the loop, nor how weights are merged: that is
`engine.adapters.merge`, which takes the base as it is stored, since merging into 4-bit weights would round the update
away. The merged model therefore differs a little from the adapter on its 4-bit base, by as much as quantisation had
changed the base. Both differences, to the adapter on the base it was trained on and on the stored one, are measured on
held-out tokens and said in the card.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from engine.adapters import merge as folders
from engine.adapters.folder import read_adapter
from engine.adapters.merge_plan import Weighed
from engine.adapters.merge_refusals import SPARE_BYTES
from engine.adapters.preflight import heldout_of
from engine.context.certificate import CERTIFICATE_NAME, Training, encode_certificate
from engine.data.load import PreparedData, prepare
from engine.data.rows import EncodedRow
from engine.errors import EngineError, ExitCode
from engine.evaluation.head import summed_loss
from engine.evaluation.length_memory import free_bytes
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import row_batches
from engine.jobs import layout
from engine.jobs.card import MergeCheck
from engine.jobs.spec import JobSpec, Task
from engine.jobs.store import load_run_spec
from engine.jobs.summary import read_record
from engine.models.headers import read_headers
from engine.models.resolve import download_weights, resolve_model
from engine.models.source import ModelRef
from engine.proof.drift import logit_drift
from engine.surgery.helpers import Progress, Report
from engine.train.attempt import Attempt
from engine.train.environment import Device, choose_threads, prepare_process, prepare_torch, quiet_libraries
from engine.train.lessons import short_length
from engine.train.model import BaseRequest, base_request, load_base, ready
from engine.train.output import ADAPTER, MERGED, folder_bytes
from engine.train.tally import Tally
from engine.train.window import Window, certificate_of, trains_window, window_of

LOGIT_BYTES = 64 * 1024**2
"""The adapter's logits wait in memory while the merged model is made; the rows compared are cut to fit."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What one model says on some rows; N positions."""

    logits: Tensor  # (N, V) float32 on the CPU
    loss: float


@dataclass(frozen=True, slots=True)
class MergeJob:
    """Everything merging needs to know about its run."""

    run_dir: Path
    spec: JobSpec
    ref: ModelRef
    rows: Sequence[EncodedRow]
    device: Device
    certificate: bytes = b""
    """`extension.json` of a model whose window the run made longer."""

    @property
    def folder(self) -> Path:
        assert self.ref.path is not None
        return self.ref.path


def compared_rows(data: PreparedData, vocab_size: int) -> tuple[EncodedRow, ...]:
    """Held-out rows (training rows when nothing is held out), as many as fit the memory set aside for logits."""
    left = max(1, LOGIT_BYTES // (4 * vocab_size))
    rows: list[EncodedRow] = []
    for row in data.heldout or data.train:
        left -= row.trained_tokens
        if rows and left < 0:
            break
        rows.append(row)
    return tuple(rows)


def take_reference(model: LoadedModel, rows: Sequence[EncodedRow]) -> Reference:
    """Logits at the trained positions of `rows`."""
    parts: list[Tensor] = []
    loss_sum = tokens = 0.0
    with model.inference():
        for batch in row_batches(model, rows):
            logits = model.logits_at(batch.input_ids, batch.position_ids, batch.positions).float()
            loss_sum += float(summed_loss(logits, batch.targets))
            tokens += len(batch.targets)
            parts.append(logits.cpu())
    return Reference(torch.cat(parts), loss_sum / max(tokens, 1))


def merge(job: MergeJob, reference: Reference, tokenizer: Any, report: Report = lambda _: None) -> MergeCheck:
    """Write `output/merged`, load it with plain transformers, and compare. It appears whole or not at all; what an
    attempt that was killed had finished is kept. Raises EngineError `merge.*`, `disk.full`."""
    request = merge_request(job)
    if not folders.is_merged(request):
        folders.merge(request, report)
    kind, stored = job.spec.quantization_kind, None
    if kind != "none":
        with _loaded(job, job.folder, tokenizer, adapter=True) as model:
            stored = take_reference(model, job.rows)
    with _loaded(job, request.out, tokenizer) as model:
        merged = take_reference(model, job.rows)
    drift = logit_drift(reference.logits, merged.logits)
    own = logit_drift(stored.logits, merged.logits) if stored is not None else None
    return MergeCheck(
        path=request.out.relative_to(job.run_dir).as_posix(),
        size_bytes=folder_bytes(request.out),
        max_logit_difference=drift.max_abs_logit_diff,
        mean_logit_difference=drift.mean_abs_logit_diff,
        same_top_token=drift.top1_agreement,
        relative_difference=drift.max_rel_logit_diff,
        mean_kl=drift.mean_kl,
        merged_task_loss=merged.loss,
        adapter_task_loss=reference.loss,
        base_dtype=kind if kind != "none" else str(job.device.compute_dtype).removeprefix("torch."),
        stored_base_difference=None if own is None else own.max_rel_logit_diff,
        stored_base_same_top_token=None if own is None else own.top1_agreement,
    )


class Told:
    """The merging, in the journal; once a second."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._last = attempt, 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            self._attempt.phase("merging", progress.words, progress.done_bytes, progress.total_bytes)


def merge_request(job: MergeJob) -> folders.MergeRequest:
    """What is merged into what. Raises EngineError `adapter.*`."""
    output = job.run_dir / layout.OUTPUT
    return folders.MergeRequest(
        base=job.folder,
        mix=(Weighed(read_adapter(output / ADAPTER)),),
        out=output / MERGED,
        force=True,  # the run's own, of an adapter that it had before
        extra={CERTIFICATE_NAME: job.certificate} if job.certificate else {},
    )


@contextmanager
def _loaded(job: MergeJob, folder: Path, tokenizer: Any, *, adapter: bool = False) -> Iterator[LoadedModel]:
    """A model folder, unquantised, with the run's adapter where asked, for as long as the block lasts."""
    place = _place(job)
    base = load_base(BaseRequest(folder, "none", False, place.compute_dtype, place.torch_device))
    model = _with_adapter(base, job.run_dir) if adapter else base
    try:
        yield ready(model, base, tokenizer, place)
    finally:
        del base, model
        gc.collect()
        if place.is_cuda:
            torch.cuda.empty_cache()


def _place(job: MergeJob) -> Device:
    """The run's device, or the processor where the card, which held the base in 4 bits, has no room for it whole."""
    device = job.device
    needed = sum(tensor.elements for tensor in read_headers(job.folder).tensors) * device.compute_dtype.itemsize
    if device.is_cuda and free_bytes(device.torch_device) < needed + 8 * SPARE_BYTES:
        return replace(device, torch_device="cpu")
    return device


def _with_adapter(base: Any, run_dir: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(run_dir / layout.OUTPUT / ADAPTER))


def merge_run(run_dir: Path) -> MergeCheck:
    """Merge the finished adapter of a run and note the result in its card. Raises EngineError."""
    spec = load_run_spec(run_dir)
    if not (run_dir / layout.OUTPUT / ADAPTER / "adapter_model.safetensors").is_file():
        raise EngineError(
            "merge.no_adapter",
            f"Run {run_dir.name} has no adapter yet.",
            next_step="Let it finish, or stop it: stopping saves the adapter.",
        )
    ref = download_weights(resolve_model(spec.model.source, revision=spec.model.revision))
    assert ref.path is not None
    device = prepare_torch(choose_threads(spec.training.threads), spec.training.dtype)
    quiet_libraries()
    created = datetime.fromtimestamp(read_record(run_dir).created)
    mixes = spec.task is Task.MIX
    data = heldout_of(spec, ref.path, created) if mixes else prepare(spec.data, ref.path, now=created)
    window = window_of(run_dir, spec, ref) if trains_window(spec) else None
    ref = window.ref if window is not None else ref
    assert ref.path is not None
    reference, rows = _adapter_reference(run_dir, spec, ref.path, data, device)
    certificate = merged_certificate(run_dir, spec, window, _tally_of(run_dir))
    check = merge(MergeJob(run_dir, spec, ref, rows, device, certificate), reference, data.tokenizer)
    _note_in_card(run_dir, check)
    return check


def merged_certificate(run_dir: Path, spec: JobSpec, window: Window | None, tally: Tally) -> bytes:
    """`extension.json` of the merged model; empty where the job extended nothing."""
    if window is None:
        return b""
    training = Training(
        run=run_dir.name,
        window=spec.context.window,
        steps=tally.step,
        tokens=tally.tokens,
        seconds=tally.training_seconds,
        task=spec.task.value,
        train_length=short_length(spec, window) if spec.context.window != "full" else spec.data.max_length,
    )
    certificate = certificate_of(window, spec, training, "merged")
    return encode_certificate(certificate) if certificate is not None else b""


def _tally_of(run_dir: Path) -> Tally:
    """What was trained, from the card; nothing for a run without one."""
    from engine.jobs.card_io import read_card

    if not (run_dir / layout.CARD).is_file():
        return Tally()
    found = read_card(run_dir)
    return Tally(step=found.steps, tokens=found.tokens, training_seconds=found.training_seconds)


def _adapter_reference(
    run_dir: Path, spec: JobSpec, folder: Path, data: PreparedData, device: Device
) -> tuple[Reference, tuple[EncodedRow, ...]]:
    base = load_base(base_request(spec, folder, device))
    loaded = ready(_with_adapter(base, run_dir), base, data.tokenizer, device)
    rows = compared_rows(data, loaded.vocab_size)
    return take_reference(loaded, rows), rows


def _note_in_card(run_dir: Path, check: MergeCheck) -> None:
    from engine.jobs.card_io import read_card, write_card

    if (run_dir / layout.CARD).is_file():
        write_card(run_dir, msgspec.structs.replace(read_card(run_dir), merged=check))


def main(arguments: list[str]) -> int:
    """Merge one run; prints the check, or the error, as JSON. Returns the exit code."""
    prepare_process(None)
    try:
        check = merge_run(Path(arguments[0]).absolute())
    except EngineError as error:
        sys.stdout.write(msgspec.json.encode({"error": error.as_dict()}).decode() + "\n")
        return int(error.exit_code)
    sys.stdout.write(msgspec.json.encode(check).decode() + "\n")
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
