"""`extend`: from a model and a length to a folder with a longer window and its certificate, or to a clear refusal.

Owns the order of steps and what survives an interruption. Must not know formulas, tensors, or how things are shown.
Steps that need torch run in processes of their own.

    checks ─► race or search ─► plan ─► losses confirmed ─► folder of links ─► check ─► report ─► rename
"""

from __future__ import annotations

import datetime
import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from engine import __version__
from engine.context.certificate import (
    CERTIFICATE_NAME,
    Certificate,
    Race,
    Training,
    encode_certificate,
    read_certificate,
)
from engine.context.method import Options
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan
from engine.context.planner import plan_context
from engine.context.portability import Portability, portability
from engine.errors import EngineError, ExitCode
from engine.extension import folder, steps
from engine.extension.losses import refuse_losses
from engine.extension.staging import (
    DECISION,
    FACTORS,
    MODEL,
    Order,
    Staging,
    identity,
    read_order,
    staging_folder,
    unwritable,
)
from engine.extension.training import take_merged
from engine.jobs.layout import DISK_FULL_ERRNOS, write_atomic
from engine.jobs.race_lines import SearchDone
from engine.jobs.spec_context import AUTO, SEARCHED
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.headers import read_headers
from engine.surgery.helpers import Progress, Report

LONGROPE2 = "longrope2"
_UNWRITABLE_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
Confirm = Callable[[ContextPlan, tuple[Portability, ...]], bool]
"""Asks whether losses are accepted; without one they are refused."""


Train = Callable[["Decision", Path], Path]
"""(decision, staging folder) -> the run's merged model. Called again after an interruption."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`decision.json`: what the race or search ended in."""

    plan: ContextPlan
    race: Race | None = None
    search: SearchDone | None = None


@dataclass(frozen=True, slots=True)
class ExtendRequest:
    """One extension."""

    source: Path
    out: Path
    order: Order
    """Of a resume: what the first attempt was asked for."""
    allowed: tuple[str, ...] = ()
    """Consumers whose loss is accepted; "all" for every one."""
    confirm: Confirm | None = None
    on_race: Callable[[Race], None] | None = None
    """Told when the race is over, before anything is written."""
    train: Train | None = None
    """Trains at the new length where the order asks for it."""
    resume: bool = False


def new_order(source: Path, name: str, **fields: Any) -> Order:
    """The order for a model folder. Raises EngineError `safetensors.*`."""
    files = identity(source, read_headers(source))
    return Order(program=f"scaler-wizard {__version__}", source=str(source), name=name, files=files, **fields)


def extend(request: ExtendRequest, report: Report) -> Certificate:
    """Make the extended folder. Returns its certificate; `request.out` exists then and only then.

    Raises EngineError before anything is written for whatever can be checked; later `context.loss` for a loss nobody
    confirmed, `context.frequencies` when the folder does not rotate as planned, `disk.full`, and those of the
    measuring processes. The staging folder is kept then, as after Ctrl+C or a crash, and `resume` goes on from it.
    """
    started = time.monotonic()
    check_out(request.source, request.out)
    order = request.order
    if not request.resume and not needs_choice(order):  # nothing is measured first: refuse before anything is made
        _, accepted = _accepted(request, _plan_of(request.source, order))
        request = replace(request, allowed=(*request.allowed, *accepted))
    opened = (
        Staging.resume(request.out, identity(request.source, read_headers(request.source)))
        if request.resume
        else Staging.create(request.out, order)
    )
    with opened as staging:
        try:
            return _extend(request, order, staging, started, report)
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS:
                raise _disk_full(staging.folder, error) from error
            if error.errno in _UNWRITABLE_ERRNOS:
                raise unwritable(request.out.parent, error) from error
            raise


def _extend(request: ExtendRequest, order: Order, staging: Staging, started: float, report: Report) -> Certificate:
    measuring = measuring_of(order, request.source, staging.folder, report)
    config = read_json_object(request.source / CONFIG_NAME, code="model.config_damaged", what="a model config")
    decision = _decided(request, order, staging, measuring, config)
    plan = decision.plan
    model = staging.folder / MODEL
    try:
        readers, accepted = _accepted(request, plan, _accepted_before(model))
    except EngineError as error:
        if error.code == "context.loss" and (staging.folder / DECISION).is_file():
            error.next_step = (
                f"{error.next_step.partition(', or say where')[0].rstrip('.')}: what was measured is kept "
            )
            error.next_step += f"and taken with --resume. For another method, remove {staging.folder} and start again."
        raise
    training = _made(request, order, decision, model, report)
    links = "merged" if training else order.links
    certificate = new_certificate(decision, order.source, links, training=training, readers=readers)
    certificate = msgspec.structs.replace(certificate, program=order.program, accepted_losses=accepted)
    write_atomic(model / CERTIFICATE_NAME, encode_certificate(certificate))
    certificate = _measured(certificate, order, replace(measuring, name=request.out.name), started)
    write_atomic(model / CERTIFICATE_NAME, encode_certificate(certificate))
    staging.publish()
    report(Progress("done", 1, 1, f"{request.out} is complete"))
    return certificate


def needs_choice(order: Order) -> bool:
    """Whether a race or a search comes first."""
    return order.method == AUTO or (order.method in SEARCHED and not order.options.long_divisors)


def _plan_of(source: Path, order: Order) -> ContextPlan:
    config = read_json_object(source / CONFIG_NAME, code="model.config_damaged", what="a model config")
    return plan_context(config, order.target, order.method, order.options, order.name)


def _accepted(
    request: ExtendRequest, plan: ContextPlan, before: tuple[str, ...] = ()
) -> tuple[tuple[Portability, ...], tuple[str, ...]]:
    """What programs make of the plan, and whose losses were accepted. Raises EngineError `context.loss`."""
    config = read_json_object(request.source / CONFIG_NAME, code="model.config_damaged", what="a model config")
    readers = portability(config, plan)
    allowed = (*request.allowed, *before)
    return readers, refuse_losses(plan, readers, request.order.consumers, allowed, request.confirm)


def _accepted_before(model: Path) -> tuple[str, ...]:
    """By an earlier attempt: nobody is asked twice."""
    certificate = read_certificate(model)
    return certificate.accepted_losses if certificate is not None else ()


def new_certificate(
    decision: Decision, source: str, links: str, *, training: Training | None, readers: tuple[Portability, ...]
) -> Certificate:
    """Of a folder made now from the model that the user calls `source`, not yet checked or measured."""
    return Certificate(
        source=source,
        program=f"scaler-wizard {__version__}",
        versions=_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        plan=decision.plan,
        links=links,
        race=decision.race,
        search=decision.search,
        training=training,
        portability=readers,
    )


def _versions() -> dict[str, str]:
    """Of the libraries that measure, without importing them."""
    found = {}
    for name in ("torch", "transformers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _made(request: ExtendRequest, order: Order, decision: Decision, model: Path, report: Report) -> Training | None:
    """The folder in the staging folder, and the training behind it."""
    if not order.train:
        if not model.exists():
            report(Progress("folder", 0, 0, "writing the folder"))
            folder.write_extended(request.source, model, decision.plan, links=_links(order))
        return None
    if not model.exists():
        assert request.train is not None, "an order that trains needs somebody who does"
        take_merged(request.train(decision, model.parent), model)
    certificate = read_certificate(model)
    assert certificate is not None
    return certificate.training


def _measured(certificate: Certificate, order: Order, measuring: steps.Measuring, started: float) -> Certificate:
    """With the check of the folder and, where wanted, its report."""
    certificate = msgspec.structs.replace(certificate, check=steps.check_folder(measuring, weights=order.check))
    if order.report:
        found = steps.evaluate(measuring, certificate.plan.original)
        if certificate.race is not None:
            words = f"Needles have seed {order.seed}; the method was chosen on those of {steps.race_seed(order.seed)}."
            found = msgspec.structs.replace(found, notes=(*found.notes, words))
        certificate = msgspec.structs.replace(certificate, report=found)
    return msgspec.structs.replace(certificate, seconds=time.monotonic() - started)


def _decided(
    request: ExtendRequest, order: Order, staging: Staging, measuring: steps.Measuring, config: dict[str, Any]
) -> Decision:
    """The plan: of an earlier attempt, or made now."""
    path = staging.folder / DECISION
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Decision)
    decision = decide(order, measuring, config)
    if needs_choice(order) or order.train:
        write_atomic(path, msgspec.json.encode(decision))
    if decision.race is not None and request.on_race is not None:
        request.on_race(decision.race)
    return decision


def decide(order: Order, measuring: steps.Measuring, config: dict[str, Any]) -> Decision:
    """Race, search or neither, and the plan that follows. Raises EngineError `context.*` and the processes' own."""
    method, options = order.method, order.options
    found_race: Race | None = None
    found: SearchDone | None = None
    if method == AUTO:
        found_race, searched, found = race_all(order, measuring)
        assert found_race.decided is not None
        method = found_race.decided.method
        options = searched if method in SEARCHED else Options()
    elif method in SEARCHED and not options.long_divisors:
        factors, found = steps.search(measuring, method, order)
        options = factors.applied(options)
    plan = plan_context(config, order.target, method, options, order.name)
    if found is not None and method in SEARCHED and (note := seed_note(found)):
        plan = replace(plan, notes=(*plan.notes, note))
    return Decision(plan=plan, race=found_race, search=found)


def race_all(order: Order, measuring: steps.Measuring) -> tuple[Race, Options, SearchDone | None]:
    """The race of an order, the factors that took part in it, and the search behind them where there was one.

    Without factors and without time for a search it is between the methods that need neither. Raises as `decide`.
    """
    if order.searches:
        path = measuring.searched_log
        logged = replace(measuring, log=path)
        factors, found = steps.search(logged, LONGROPE2, order)
        options = factors.applied(Options())
        return steps.race(measuring, contenders(order), path), options, found
    if not order.options.long_divisors:
        return steps.race(measuring, order.among), Options(), None
    if measuring.log is not None:
        path = Path(order.factors)
    else:
        path = measuring.folder / FACTORS
        _write_factors(order.options, path)
    return steps.race(measuring, contenders(order), path), order.options, None


def _write_factors(options: Options, path: Path) -> None:
    """The order's factors, as `engine.context.factors` reads them: the file they came from may change."""
    tree = {
        "long_factor": options.long_divisors,
        "short_factor": options.short_divisors,
        "attention_factor": options.attention_factor,
        "critical_pair": options.critical_pair,
    }
    write_atomic(path, msgspec.json.encode(tree))


def contenders(order: Order) -> tuple[str, ...]:
    """The methods of a race in which LongRoPE2 takes part."""
    named = order.among or tuple(name for name, method in METHODS.items() if not method.needs_search)
    return tuple(dict.fromkeys((*named, LONGROPE2)))


def seed_note(found: SearchDone) -> str:
    """What follows where a search found nothing better than a known method; "" where it did."""
    if found.best < found.best_seed or found.best_seed_name not in METHODS:
        return ""
    return (
        f"The search found nothing better than {found.best_seed_name}, with which it began: --method "
        f"{found.best_seed_name} turns every pair alike, and more programs read it."
    )


def measuring_of(order: Order, source: Path, where: Path, report: Report) -> steps.Measuring:
    """What an order tells the measuring processes."""
    return steps.Measuring(
        source, order.target, where, report,
        text=order.text, seed=order.seed, prompts=order.prompts, quick=order.quick, name=order.name,
        lengths=order.lengths, needles=order.needles, dtype=order.dtype, quantization=order.quantization,
    )  # fmt: skip


def check_out(source: Path, out: Path) -> None:
    """Refuse an output that exists, lies in the source, or holds it. Raises EngineError `extension.out_*`."""
    from engine.surgery.checks import check_folders

    try:
        check_folders(source, out, resume=False)
    except EngineError as error:
        error.code = error.code.replace("surgery.", "extension.")
        raise


def _links(order: Order) -> folder.Links:
    return "copy" if order.links == "copy" else "hard"


def _disk_full(where: Path, error: OSError) -> EngineError:
    return EngineError(
        "disk.full",
        f"There is no room left to write in {where}.",
        cause=error.strerror or str(error),
        next_step="Free some space and use --resume; what was measured is kept.",
        exit_code=ExitCode.RUN_FAILED,
    )


__all__ = ["ExtendRequest", "Training", "extend", "new_order", "read_order", "staging_folder"]
