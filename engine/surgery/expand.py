"""`expand`: from a source folder and a plan to a larger model with its certificate, or to a clear refusal.

Owns the order of steps and what survives an interruption. Must not know tensors. Steps that need torch run in processes
of their own, so that this one stays small and starts at once.

    checks ─► layers made (engine.learned) ─► shards ─► certificate ─► proof (engine.proof) ─► rename
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import (
    CERTIFICATE_NAME,
    Certificate,
    FileEntry,
    Proof,
    encode_certificate,
    read_certificate,
)
from engine.expansion.growth import LayerKind
from engine.expansion.plan import ExpansionPlan
from engine.expansion.plan_io import encode_plan
from engine.jobs.layout import DISK_FULL_ERRNOS, write_atomic
from engine.models.config import CONFIG_NAME
from engine.models.headers import INDEX_NAME, read_file_header
from engine.surgery import certify, checks
from engine.surgery.carry import carry_over
from engine.surgery.helpers import Progress, Report, Ticker, run_module
from engine.surgery.order import Prepared, prepare
from engine.surgery.reader import TensorReader
from engine.surgery.shards import DEFAULT_SHARD_BYTES, index_bytes
from engine.surgery.staging import (
    MADE,
    PLAN,
    PROOF,
    PROOF_LOG,
    Staging,
    disk_full,
    finish_interrupted,
    sha256_of,
    staging_folder,
)
from engine.surgery.writer import Sealed, Writing, write_shards


@dataclass(frozen=True, slots=True)
class ExpandRequest:
    """One expansion."""

    source: Path
    out: Path
    plan: ExpansionPlan
    shard_bytes: int = DEFAULT_SHARD_BYTES
    proof: bool = True
    proof_text: Path | None = None
    resume: bool = False


def expand(request: ExpandRequest, report: Report) -> Certificate:
    """Make the larger model. Returns its certificate; `request.out` exists then and only then.

    Raises EngineError before anything is written for whatever can be checked; later for a full disk (`disk.full`), NaN
    in the weights, a failed helper, or a proof that does not hold (`expansion.not_exact`). The staging folder is kept
    then, as after Ctrl+C or a crash, and `resume` goes on from it.
    """
    started = time.monotonic()
    checks.check_folders(request.source, request.out, resume=request.resume)
    if request.resume and finish_interrupted(request.out):
        return _published(request.out)
    report(Progress("checks", 0, 0, "reading the source's headers"))
    prepared = prepare(request.source, request.plan, request.shard_bytes)
    if not request.resume:
        checks.check_room(request.out, _needed_bytes(prepared))
    opened = Staging.resume if request.resume else Staging.create
    with opened(request.out, prepared.order) as staging:
        try:
            return _grow(request, prepared, staging, started, report)
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise disk_full(staging.folder, error) from error
            raise


def _grow(request: ExpandRequest, prepared: Prepared, staging: Staging, started: float, report: Report) -> Certificate:
    done = staging.done()
    if request.plan.needs_made_layers and not done.made:
        _make_layers(request, staging, report)
    made = read_file_header(staging.folder / MADE) if request.plan.needs_made_layers else ()
    with TensorReader(prepared.headers.tensors, made) as reader:
        sealed = _write(prepared, staging, reader, done.shards, report)
        undo = certify.undo_section(prepared, reader)
    checks.check_unchanged(prepared.source, prepared.headers.files, prepared.files)
    entries = [FileEntry(name=one.name, size_bytes=one.size_bytes, sha256=one.sha256) for one in sealed]
    entries += _small_files(prepared, staging)
    written = sum(one.written_bytes for one in sealed) + sum(entry.size_bytes for entry in entries[len(sealed) :])
    sources = [
        FileEntry(name=file.name, size_bytes=file.size_bytes, sha256=file.head_sha256) for file in prepared.files
    ]
    spent = certify.Spent(time.monotonic() - started, peak_rss_bytes(), written)
    certificate = certify.certificate(prepared, entries, undo, sources, spent)
    write_atomic(staging.folder / CERTIFICATE_NAME, encode_certificate(certificate))
    if request.proof:
        proof = _prove(request, staging, report)
        spent_seconds = time.monotonic() - started
        certificate = msgspec.structs.replace(
            certificate,
            proof=proof,
            versions={**certificate.versions, **proof.versions},
            seconds=spent_seconds,
            peak_rss_bytes=peak_rss_bytes(),
        )
        write_atomic(staging.folder / CERTIFICATE_NAME, encode_certificate(certificate))
        _require_exact(certificate, proof, staging)
    staging.publish([CERTIFICATE_NAME, *(entry.name for entry in certificate.files)])
    report(Progress("done", prepared.total_bytes, prepared.total_bytes, f"{request.out} is complete"))
    return certificate


def _make_layers(request: ExpandRequest, staging: Staging, report: Report) -> None:
    folder = staging.folder
    (folder / PLAN).write_bytes(encode_plan(request.plan))
    arguments = ["--source", str(request.source), "--plan", str(folder / PLAN), "--out", str(folder / MADE)]
    run_module("engine.learned", arguments, folder / "learned.log", "layers", report)
    staging.record("made")


def _write(
    prepared: Prepared, staging: Staging, reader: TensorReader, finished: dict[str, Sealed], report: Report
) -> list[Sealed]:
    """All shards that are not finished yet; the list is in the order of the files."""
    sealed = dict(finished)
    total = prepared.total_bytes
    ticker = Ticker(report, total, sum(one.size_bytes for one in finished.values()))

    def on_sealed(one: Sealed) -> None:
        staging.record_shard(one)
        sealed[one.name] = one

    missing = [shard for shard in prepared.shards if shard.name not in finished]
    work = Writing(staging.folder, reader, prepared.plan.seed, prepared.literals, ticker.add, on_sealed)
    write_shards(missing, work)
    report(Progress("weights", total, total, "weights written"))
    return [sealed[shard.name] for shard in prepared.shards]


def _small_files(prepared: Prepared, staging: Staging) -> list[FileEntry]:
    """Config, index, tokenizer and what else goes along."""
    folder = staging.folder
    config = json.dumps(prepared.config_after, indent=2, ensure_ascii=False) + "\n"
    write_atomic(folder / CONFIG_NAME, config.encode())
    names = [CONFIG_NAME, *carry_over(prepared.source, folder)]
    if len(prepared.shards) > 1:
        write_atomic(folder / INDEX_NAME, index_bytes(prepared.shards))
        names.append(INDEX_NAME)
    return [
        FileEntry(name=name, size_bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in names
    ]


def _prove(request: ExpandRequest, staging: Staging, report: Report) -> Proof:
    folder = staging.folder
    (folder / PROOF).unlink(missing_ok=True)
    arguments = ["--source", str(request.source), "--grown", str(folder), "--out", str(folder / PROOF)]
    if request.proof_text is not None:
        arguments += ["--text", str(request.proof_text)]
    run_module("engine.proof", arguments, folder / PROOF_LOG, "proof", report)
    return msgspec.json.decode((folder / PROOF).read_bytes(), type=Proof)


def _require_exact(certificate: Certificate, proof: Proof, staging: Staging) -> None:
    if proof.passed or not proof.exact_claimed:
        return
    reason = proof.reason or "the logits differ from the source's by more than rounding explains"
    staging.record("failed", f"Its proof did not hold: {reason}")
    operators = ", ".join(dict.fromkeys(certificate.operators.values()))
    raise EngineError(
        "expansion.not_exact",
        f"The expansion with {operators} claims to keep the function, and the proof says it does not.",
        cause=f"{reason[0].upper()}{reason[1:]}",
        next_step=f"Nothing was renamed into place; {staging.folder} holds the result and its proof. "
        "Report it with that folder's expansion.json, or remove the folder.",
        exit_code=ExitCode.RUN_FAILED,
    )


def _needed_bytes(prepared: Prepared) -> int:
    made = sum(1 for layer in prepared.plan.layers if layer.kind is LayerKind.MADE)
    extra = checks.made_bytes(prepared.headers.tensors, prepared.plan.before.layers, made) if made else 0
    return prepared.total_bytes + extra


def _published(out: Path) -> Certificate:
    certificate = read_certificate(out)
    assert certificate is not None, "a folder is only renamed with its certificate"
    return certificate


def peak_rss_bytes() -> int:
    """The most memory that was resident at once: this process's peak, or its present size and its largest helper's."""
    own = _status_bytes("VmHWM")
    helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return max(own, helper + _status_bytes("VmRSS")) if helper else own


def _status_bytes(key: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


__all__ = ["DEFAULT_SHARD_BYTES", "ExpandRequest", "Progress", "expand", "staging_folder"]
