"""Adapters folded into their base: a model folder that needs no peft, written tensor by tensor and shard by shard.

Owns the order of steps and what survives an interruption. Must not know how a tensor is computed. No model is built:
memory holds a few matrices, whatever the size of the base. Repeating the command after a kill goes on with the weight
files that were finished.

    checks ─► plan (merge_plan) ─► shards (merge_pieces) ─► config, tokenizer ─► merge.json ─► rename
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from engine.adapters.base import check_base, read_base
from engine.adapters.folder import WEIGHTS
from engine.adapters.merge_folder import Said, has_tokenizer, own_config, taken_from, write_small_files
from engine.adapters.merge_pieces import Pieces
from engine.adapters.merge_plan import MergePlan, Target, Weighed, plan_merge
from engine.adapters.merge_record import RECORD, MergedAdapter, MergedFile, MergeRecord, read_record
from engine.adapters.merge_refusals import check_not_quantised, check_out, check_room, disk_full, other_order
from engine.adapters.recipe import EXACT, Share, used_shares
from engine.adapters.recipe import Recipe as Mixing
from engine.adapters.replacing import check_free
from engine.errors import EngineError
from engine.expansion.maps import identity
from engine.expansion.recipe import Recipe, Source
from engine.jobs.layout import DISK_FULL_ERRNOS, fsync_directory, write_atomic
from engine.models.config import CONFIG_NAME, text_part
from engine.models.folder import check_folder
from engine.models.headers import INDEX_NAME, Headers, TensorHeader, read_headers
from engine.surgery import checks, numbers
from engine.surgery.expand import peak_rss_bytes
from engine.surgery.helpers import Progress, Report, Ticker
from engine.surgery.order import program, recipes_sha256
from engine.surgery.reader import TensorReader
from engine.surgery.shards import DEFAULT_SHARD_BYTES, Shard, index_bytes, split
from engine.surgery.staging import (
    ORDER,
    PROGRESS,
    Order,
    SourceFile,
    Staging,
    finish_interrupted,
    sha256_of,
    staging_folder,
)
from engine.surgery.writer import Sealed, Writing, write_shards


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """One merge."""

    base: Path
    mix: tuple[Weighed, ...]
    """At least one; the sum of their weighted updates is added, or what `mixing` makes of them."""
    out: Path
    mixing: Mixing = EXACT
    """Of any method but svd, and without a rank."""
    dtype: str = "stored"
    """ "stored", or "float32", "bfloat16", "float16"."""
    shard_bytes: int = DEFAULT_SHARD_BYTES
    force: bool = False
    """Replace `out` where it is a model's folder, and drop what lies unfinished of another merge."""
    extra: Mapping[str, bytes] = field(default_factory=dict)
    """More small files: name -> content."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Everything known before the first byte."""

    request: MergeRequest
    headers: Headers
    plan: MergePlan
    shards: tuple[Shard, ...]
    replacements: tuple[TensorHeader, ...]
    """Stored tensors of adapters that become the result's as they are, under the result's names."""
    computed: Mapping[str, Target]
    config: tuple[Mapping[str, Any], Path]
    files: tuple[SourceFile, ...]
    adapters: tuple[MergedAdapter, ...]
    notes: tuple[str, ...]
    beside: Mapping[str, str]
    """SHA-256 of the small files that come from an adapter."""

    @property
    def total_bytes(self) -> int:
        """Of all weight files."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def order(self) -> Order:
        """What an unfinished folder is held against."""
        return Order(
            program=program(),
            source=str(self.request.base),
            files=self.files,
            plan={
                "merge": [{"sha256": one.sha256, "weight": one.weight} for one in self.adapters],
                "dtype": self.request.dtype,
                "config": hashlib.sha256(msgspec.json.encode(self.config[0], order="sorted")).hexdigest(),
                "extra": {name: hashlib.sha256(content).hexdigest() for name, content in self.request.extra.items()},
                "beside": self.beside,
                **({} if self.request.mixing.is_sum else {"mixing": asdict(self.request.mixing)}),
            },
            recipes_sha256=recipes_sha256([placed.recipe for shard in self.shards for placed in shard.tensors]),
            shard_bytes=self.request.shard_bytes,
        )

    @property
    def order_sha256(self) -> str:
        """The order's, without what tells versions of this program apart."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self.order, program=""))).hexdigest()


def merge(request: MergeRequest, report: Report = lambda _: None) -> MergeRecord:
    """Write the merged model; `request.out` is there then, and not before.

    Raises EngineError `merge.*`, `adapter.*`, `model.*`, `safetensors.*` before anything is written for whatever can be
    checked; later `disk.full`, `weights.nan`, `merge.overflow`. What is finished is kept then, and the same request
    goes on from it.
    """
    started = time.monotonic()
    assert request.mix, "nothing to merge"
    report(Progress("checks", 0, 0, "reading headers"))
    prepared = _prepare(request)
    if finish_interrupted(request.out, RECORD):
        found = read_record(request.out)
        shutil.rmtree(_aside(request.out), ignore_errors=True)
        if found is not None and found.order_sha256 == prepared.order_sha256:
            return found
    folders = [one.adapter.path for one in request.mix]
    check_out(request.base, folders, request.out, force=request.force)
    with _staging(prepared) as staging:
        try:
            return _written(prepared, staging, started, report)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            raise _no_room(prepared, staging, error) from error


def is_merged(request: MergeRequest) -> bool:
    """Whether `request.out` is what the request would write, finished by an earlier attempt. Raises EngineError."""
    found = read_record(request.out)
    return found is not None and found.order_sha256 == _prepare(request).order_sha256


def _prepare(request: MergeRequest) -> _Prepared:
    base = request.base
    config = check_folder(base)
    headers = read_headers(base)
    check_not_quantised(config, headers, str(base))
    checks.check_duplicates(headers)
    used_shares([Share(one.adapter, one.weight) for one in request.mix])
    for one in request.mix:
        check_base(one.adapter, base)
    tied = bool(text_part(config)[0].get("tie_word_embeddings", True))
    dtype = numbers.NAMES.get(request.dtype, "")
    plan = plan_merge(read_base(base), request.mix, dtype, tied=tied)
    copies = plan.targets if request.mixing.is_sum else ()
    beside = _tokenizer_folder(request, plan)
    replaced = {target.name: found for target in copies if (found := target.replaced_by) is not None}
    recipes = [_recipe(target, made=target.name in replaced) for target in plan.targets]
    return _Prepared(
        request=request,
        headers=headers,
        plan=plan,
        shards=split(recipes, request.shard_bytes),
        replacements=tuple(replace(tensor, name=name) for name, tensor in replaced.items()),
        computed={target.name: target for target in plan.targets if target.parts and target.name not in replaced},
        config=_config(request, config),
        files=checks.source_files(base, headers),
        adapters=tuple(_adapter(one) for one in request.mix),
        notes=(*plan.notes, *_notes(request, plan)),
        beside={path.name: sha256_of(path) for path in (taken_from(beside) if beside is not None else ())},
    )


def _adapter(one: Weighed) -> MergedAdapter:
    adapter = one.adapter
    return MergedAdapter(
        path=str(adapter.path), kind=adapter.config.kind, weight=one.weight, sha256=sha256_of(adapter.path / WEIGHTS)
    )


def _recipe(target: Target, *, made: bool) -> Recipe:
    """A copy; of computed tensors only name, shape and type are read, and the source to be read ahead."""
    source = Source(target.name, made=True) if made else Source(target.base.name)
    return Recipe(target.name, target.shape, target.dtype, (source,), tuple(identity(count) for count in target.shape))


def _config(request: MergeRequest, base: Mapping[str, Any]) -> tuple[Mapping[str, Any], Path]:
    """The config to begin with, and its file: an adapter for a longer window brings its own. Raises EngineError
    `merge.other_config` where two adapters bring different ones."""
    found: list[tuple[Mapping[str, Any], Path]] = []
    for one in request.mix:
        own = own_config(one.adapter.path, base)
        if own is not None:
            found.append((own, one.adapter.path / CONFIG_NAME))
    if any(own != found[0][0] for own, _ in found[1:]):
        raise EngineError(
            "merge.other_config",
            "The adapters belong to different configs of the base.",
            cause=f"{found[0][1]} and {next(path for own, path in found[1:] if own != found[0][0])} differ.",
            next_step="Merge adapters that were trained for the same window.",
        )
    return found[0] if found else (base, request.base / CONFIG_NAME)


def _notes(request: MergeRequest, plan: MergePlan) -> Iterator[str]:
    if plan.unties:
        yield (
            "Embedding and output head shared one matrix in the base; the adapter changes only one of them, so they "
            "are two in the merged model."
        )
    if plan.vocabulary and _tokenizer_folder(request, plan) is None:
        yield (
            f"The embedding has {plan.vocabulary:,} tokens now, and no tokenizer lies beside the adapter; the base's "
            "was taken, which may not know them all."
        )


def _tokenizer_folder(request: MergeRequest, plan: MergePlan) -> Path | None:
    """The adapter whose tokenizer goes along: the only one, or the one that changed the vocabulary."""
    folders = [one.adapter.path for one in request.mix]
    if len(folders) > 1:
        if not plan.vocabulary:
            return None
        folders = [one.adapter.path for one in request.mix if _resizes(one, plan)]
    return next((folder for folder in folders if has_tokenizer(folder)), None)


def _resizes(one: Weighed, plan: MergePlan) -> bool:
    return any(plan.vocabulary in whole.tensor.shape[:1] for whole in one.adapter.whole)


@contextmanager
def _staging(prepared: _Prepared) -> Iterator[Staging]:
    """The hidden folder: of an earlier attempt at the same merge, or a new one."""
    out, force = prepared.request.out, prepared.request.force
    folder = staging_folder(out)
    if (folder / ORDER).is_file():
        try:
            opened = Staging.resume(out, prepared.order)
        except EngineError as error:
            if error.code not in ("surgery.other_plan", "surgery.source_changed", "surgery.staging_damaged"):
                raise
            if not force:
                raise other_order(out, folder, error.cause) from error
            shutil.rmtree(folder)
            opened = Staging.create(out, prepared.order)
    else:
        # Without its order the folder is one that was dropped, or hardly begun.
        shutil.rmtree(folder, ignore_errors=True)
        check_room(out, prepared.total_bytes)
        opened = Staging.create(out, prepared.order)
    with opened as staging:
        yield staging


def _written(prepared: _Prepared, staging: Staging, started: float, report: Report) -> MergeRecord:
    request = prepared.request
    finished = staging.done().shards
    kept = sum(one.size_bytes for one in finished.values())
    check_room(request.out, prepared.total_bytes - kept)
    sealed = _shards(prepared, staging, finished, report)
    checks.check_unchanged(request.base, prepared.headers.files, prepared.files)
    names = _small_files(prepared, staging.folder)
    files = [MergedFile(name=one.name, size_bytes=one.size_bytes, sha256=one.sha256) for one in sealed]
    files += [MergedFile(name=name, size_bytes=(staging.folder / name).stat().st_size) for name in names]
    plan = prepared.plan
    record = MergeRecord(
        program=program(),
        created=time.time(),
        base=str(request.base),
        adapters=prepared.adapters,
        dtype="" if request.dtype == "stored" else request.dtype,
        tensors=len(plan.targets),
        changed=sum(bool(target.parts) for target in plan.targets),
        untied=plan.unties,
        vocabulary=plan.vocabulary,
        files=tuple(files),
        order_sha256=prepared.order_sha256,
        notes=prepared.notes,
        seconds=time.monotonic() - started,
        kept_bytes=kept,
        peak_rss_bytes=peak_rss_bytes(),
    )
    for name in names:
        _flush(staging.folder / name)
    write_atomic(staging.folder / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    _publish(staging, [RECORD, *(file.name for file in files)], request)
    report(Progress("done", prepared.total_bytes, prepared.total_bytes, f"{request.out} is complete"))
    return record


def _shards(prepared: _Prepared, staging: Staging, finished: dict[str, Sealed], report: Report) -> list[Sealed]:
    """All shards that are not finished yet; the list is in the order of the files."""
    sealed = dict(finished)
    total = prepared.total_bytes
    ticker = Ticker(report, total, sum(one.size_bytes for one in finished.values()))

    def on_sealed(one: Sealed) -> None:
        staging.record_shard(one)
        sealed[one.name] = one

    missing = [shard for shard in prepared.shards if shard.name not in finished]
    with TensorReader(prepared.headers.tensors, prepared.replacements) as reader:
        pieces = Pieces(reader, prepared.request.mixing)
        computed = {name: partial(pieces.of, target) for name, target in prepared.computed.items()}
        write_shards(missing, Writing(staging.folder, reader, 0, {}, ticker.add, on_sealed, computed))
    report(Progress("weights", total, total, "weights written"))
    return [sealed[shard.name] for shard in prepared.shards]


def _small_files(prepared: _Prepared, folder: Path) -> list[str]:
    """Config, index, tokenizer and what else goes along; returns the names."""
    request, plan = prepared.request, prepared.plan
    said = Said(plan.unties, plan.vocabulary, "" if request.dtype == "stored" else request.dtype)
    names = write_small_files(folder, request.base, prepared.config, said, _tokenizer_folder(request, plan))
    if len(prepared.shards) > 1:
        write_atomic(folder / INDEX_NAME, index_bytes(prepared.shards))
        names.append(INDEX_NAME)
    for name, content in request.extra.items():
        write_atomic(folder / name, content)
        names.append(name)
    return list(dict.fromkeys(names))


def _flush(path: Path) -> None:
    import os

    with path.open("rb") as file:
        os.fsync(file.fileno())


def _aside(out: Path) -> Path:
    """Where what is replaced lies for a moment."""
    return out.with_name(f".{out.name}.replaced")


def _publish(staging: Staging, names: list[str], request: MergeRequest) -> None:
    """The result's name; what had it goes when the result has it."""
    out = request.out
    aside = _aside(out)
    if not (request.force and out.exists()):
        staging.publish(names)
        shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was killed just here
        return
    shutil.rmtree(aside, ignore_errors=True)
    check_free(out, "merge.out_exists", force=True)
    out.rename(aside)
    try:
        staging.publish(names)
    except BaseException:
        if not out.exists():
            aside.rename(out)
        raise
    fsync_directory(out.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _no_room(prepared: _Prepared, staging: Staging, error: OSError) -> EngineError:
    """With what is missing, after what cannot be kept is gone."""
    for path in staging.folder.glob(".*.partial"):
        path.unlink(missing_ok=True)
    finished = sum(one.size_bytes for one in staging.done().shards.values())
    return disk_full(prepared.request.out, staging.folder, prepared.total_bytes - finished, error)


__all__ = ["PROGRESS", "MergeRequest", "is_merged", "merge"]
