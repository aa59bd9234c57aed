"""`expand --undo`: the model that was grown, recovered from what it grew into.

Owns the checks and the order of steps. Must not know how recipes are inverted (`inverse`). Where no matrix was rescaled
the source's files come back byte for byte, header and order of tensors included; the vectors that growing rescales are
kept in the certificate. Where matrices were rescaled they come back within one unit in the last place, and it is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.expansion.certificate import CERTIFICATE_NAME, Certificate, read_certificate
from engine.expansion.layouts.registry import layout_for
from engine.expansion.plan_io import plan_from_tree
from engine.expansion.recipe import Recipe
from engine.jobs.layout import DISK_FULL_ERRNOS, write_atomic
from engine.models.config import CONFIG_NAME, parse_json_object
from engine.models.headers import INDEX_NAME, Headers, TensorHeader, parse_head, read_headers
from engine.models.weights import count_weights
from engine.surgery import checks
from engine.surgery.carry import SOURCE_README, carry_over
from engine.surgery.certify import Undo, unpacked
from engine.surgery.helpers import Progress, Report, Ticker
from engine.surgery.inverse import inverse_recipes, recover
from engine.surgery.order import program, recipes_for, recipes_sha256
from engine.surgery.reader import TensorReader
from engine.surgery.shards import Placed, Shard
from engine.surgery.staging import Order, SourceFile, Staging, disk_full, sha256_of
from engine.surgery.writer import Sealed, Writing, write_shards


@dataclass(frozen=True, slots=True)
class UndoResult:
    """What was recovered."""

    source: str
    """The larger model."""
    output: str
    exact: bool
    """Every weight file is the original, byte for byte."""
    rescaled: tuple[str, ...]
    """Tensors that are within one unit in the last place instead."""
    words: str
    parameters: int
    bytes_written: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Way:
    """Everything read from the certificate."""

    shards: tuple[Shard, ...]
    literals: Mapping[str, bytes]
    rescaled: tuple[str, ...]
    parameters: int


def undo(folder: Path, out: Path, report: Report, *, resume: bool = False, trained: bool = False) -> UndoResult:
    """Write the parent of the grown model in `folder` to `out`.

    `trained` recovers the parent's part of weights that were trained after growing: no longer the parent, but a model
    of its shape. Raises EngineError `surgery.not_grown`, `surgery.undo_*`, `surgery.out_*`, `disk.full`.
    """
    started = time.monotonic()
    checks.check_folders(folder, out, resume=resume)
    certificate, kept = _read(folder)
    headers = read_headers(folder)
    changed = _changed(folder, certificate, report)
    if changed and not trained:
        raise _changed_since(folder, changed)
    way = _way_back(certificate, kept, headers, trained=bool(changed))
    files = checks.source_files(folder, headers)
    if not resume:
        checks.check_room(out, sum(shard.size_bytes for shard in way.shards))
    with (Staging.resume if resume else Staging.create)(out, _order(folder, certificate, files, way)) as staging:
        try:
            sealed = _write(staging, headers, way, report)
            names = _small_files(folder, staging.folder, kept)
            staging.publish([*names, *(shard.name for shard in way.shards)])
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise disk_full(staging.folder, error) from error
            raise
    return _result(folder, out, way, sealed, time.monotonic() - started, trained=bool(changed))


def _read(folder: Path) -> tuple[Certificate, Undo]:
    try:
        certificate = read_certificate(folder)
        kept = msgspec.convert(certificate.undo, Undo) if certificate is not None else None
    except msgspec.MsgspecError as error:
        raise EngineError(
            "surgery.undo_certificate",
            f"{folder / CERTIFICATE_NAME} does not say enough to undo the growth.",
            cause=str(error),
            next_step="Download or copy the folder again, expansion.json included.",
        ) from error
    if certificate is None or kept is None:
        raise EngineError(
            "surgery.not_grown",
            f"{folder} was not made by `scaler-wizard expand`.",
            cause=f"It has no {CERTIFICATE_NAME}.",
            next_step="Name the folder that an expansion wrote.",
        )
    return certificate, kept


def _changed(folder: Path, certificate: Certificate, report: Report) -> tuple[str, ...]:
    """Weight files that are not what the certificate sealed."""
    weights = [entry for entry in certificate.files if entry.name.endswith(".safetensors")]
    total = sum(entry.size_bytes for entry in weights)
    done = 0
    changed = []
    for entry in weights:
        report(Progress("checks", done, total, f"checking {entry.name} against the certificate"))
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.size_bytes or sha256_of(path) != entry.sha256:
            changed.append(entry.name)
        done += entry.size_bytes
    return tuple(changed)


def _changed_since(folder: Path, changed: tuple[str, ...]) -> EngineError:
    return EngineError(
        "surgery.undo_changed",
        f"The weights in {folder} are not those that growing wrote; an undo would not give the parent back.",
        cause=f"{', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} changed: the model was trained or "
        "edited after it was grown.",
        next_step="Keep the original model; it cannot be recovered from here.",
    )


def _way_back(certificate: Certificate, kept: Undo, headers: Headers, *, trained: bool) -> _Way:
    heads = [(file.name, unpacked(file.header)) for file in kept.files]
    parents = {name: parse_head(Path(name), head) for name, head in heads}
    parent = Headers(tuple(tensor for group in parents.values() for tensor in group), tuple(map(Path, parents)))
    plan = plan_from_tree(certificate.plan)
    config = parse_json_object(unpacked(kept.config).decode(), code="surgery.undo_certificate", name=CONFIG_NAME)
    recipes, _ = recipes_for(config, _indexed(parent, kept), layout_for(config, certificate.source), plan, None)
    if recipes_sha256(recipes) != kept.recipes_sha256:
        raise EngineError(
            "surgery.undo_version",
            "This version of the program would grow the model differently, so it cannot undo what another one did.",
            cause=f"It was grown by {certificate.program}; this is {program()}.",
            next_step="Undo it with that version.",
        )
    holders = inverse_recipes(recipes)
    stored = {tensor.name for tensor in headers.tensors}
    literals: dict[str, bytes] = {}
    rescaled: list[str] = []
    shards: list[Shard] = []
    for name, head in heads:
        placed = []
        for tensor in parents[name]:
            wanted = kept.same.get(tensor.name, tensor.name)
            way = recover(tensor, (one for one in holders.get(wanted, ()) if one.name in stored))
            if tensor.name in kept.values and not (trained and way is not None):
                literals[tensor.name] = unpacked(kept.values[tensor.name])
            elif way is None:
                raise _lost(tensor, certificate)
            elif not way.exact:
                rescaled.append(tensor.name)
            recipe = _literal(tensor) if tensor.name in literals or way is None else way.recipe
            placed.append(Placed(recipe, tensor.offset_bytes, tensor.data_bytes))
        shards.append(Shard(name, head, tuple(placed), len(head) + sum(one.data_bytes for one in placed)))
    section = config.get("quantization_config") or {}
    parameters = count_weights(parent, section, multimodal=False).parameters if section else parent.elements
    return _Way(tuple(shards), literals, tuple(rescaled), parameters)


def _indexed(parent: Headers, kept: Undo) -> Headers:
    """What the source's index named: a file may hold more."""
    if not kept.index:
        return parent
    named = msgspec.json.decode(unpacked(kept.index)).get("weight_map", {})
    return Headers(tuple(tensor for tensor in parent.tensors if tensor.name in named), parent.files)


def _literal(tensor: TensorHeader) -> Recipe:
    return Recipe(tensor.name, tensor.shape, tensor.dtype, (), ())


def _lost(tensor: TensorHeader, certificate: Certificate) -> EngineError:
    operators = ", ".join(dict.fromkeys(certificate.operators.values()))
    return EngineError(
        "surgery.undo_impossible",
        f"The parent cannot be recovered: nothing holds '{tensor.name[:80]}' as it was.",
        cause=f"Growing with {operators} mixed it with other values (noise, averages), or left it out.",
        next_step=f"Keep the original model ({certificate.source}).",
    )


def _order(folder: Path, certificate: Certificate, files: tuple[SourceFile, ...], way: _Way) -> Order:
    return Order(
        program=program(),
        source=str(folder),
        files=files,
        plan=certificate.plan,
        recipes_sha256=recipes_sha256(_recipes(way)),
        shard_bytes=0,
        undo=True,
    )


def _recipes(way: _Way) -> list[Recipe]:
    return [placed.recipe for shard in way.shards for placed in shard.tensors]


def _write(staging: Staging, headers: Headers, way: _Way, report: Report) -> list[Sealed]:
    finished = staging.done().shards
    sealed = dict(finished)
    total = sum(shard.size_bytes for shard in way.shards)
    ticker = Ticker(report, total, sum(one.size_bytes for one in finished.values()))

    def on_sealed(one: Sealed) -> None:
        staging.record_shard(one)
        sealed[one.name] = one

    missing = [shard for shard in way.shards if shard.name not in finished]
    with TensorReader(headers.tensors) as reader:
        write_shards(missing, Writing(staging.folder, reader, 0, way.literals, ticker.add, on_sealed))
    report(Progress("weights", total, total, "weights recovered"))
    return list(sealed.values())


def _small_files(grown: Path, folder: Path, kept: Undo) -> list[str]:
    """Everything but the weights; returns the names."""
    contents = {CONFIG_NAME: unpacked(kept.config)}
    if kept.index:
        contents[INDEX_NAME] = unpacked(kept.index)
    if (grown / SOURCE_README).is_file():
        contents["README.md"] = (grown / SOURCE_README).read_bytes()
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [*contents, *carry_over(grown, folder)]


def _result(
    folder: Path, out: Path, way: _Way, sealed: Iterable[Sealed], seconds: float, *, trained: bool
) -> UndoResult:
    exact = not way.rescaled and not trained
    if trained:
        words = "The parent's part of the trained weights: a model of its shape, not the parent."
    elif exact:
        words = "Every weight file is the parent's, byte for byte."
    else:
        words = (
            f"{len(way.rescaled)} rescaled matrices are within one unit in the last place of the parent's, not "
            "byte for byte; everything else is."
        )
    written = sum(one.written_bytes for one in sealed)
    return UndoResult(str(folder), str(out), exact, way.rescaled, words, way.parameters, written, seconds)
