"""Jobs with task "extend": a longer window, measured, nothing trained.

Owns the phases from the spec to `output/model` and the card. Must not know torch: racing and measuring are processes of
their own (`engine.extension`). Killed at any moment, the next attempt goes on from what was measured.
"""

from __future__ import annotations

import time

from engine.context.certificate import Certificate, read_certificate
from engine.extension.extend import ExtendRequest, extend
from engine.extension.losses import ALL
from engine.extension.staging import ORDER, staging_folder
from engine.jobs import card, layout
from engine.jobs import events as ev
from engine.jobs.card_io import write_card
from engine.jobs.length_report import LengthReport
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.headers import read_headers
from engine.train import report
from engine.train.attempt import Attempt, Outcome, find_model
from engine.train.output import folder_bytes
from engine.train.window import Listener, notes_of, order_of, readers_from

MODEL = "model"
UNTOUCHED = "none"
"""What a race calls the model as it is."""


def run(attempt: Attempt) -> Outcome:
    """Everything. Raises EngineError, PauseRequested."""
    ref = find_model(attempt)
    assert ref.path is not None
    attempt.obey_before_training()
    attempt.phase("extending", f"to {attempt.spec.context.length:,} tokens")
    out = attempt.run_dir / layout.OUTPUT / MODEL
    certificate = read_certificate(out) if out.is_dir() else None
    if certificate is None:
        out.parent.mkdir(exist_ok=True)
        order = order_of(attempt.spec, ref, report=True)
        resume = (staging_folder(out) / ORDER).is_file()
        # What a program would lose was said before the start, and is said again below.
        request = ExtendRequest(ref.path, out, order, allowed=(ALL,), resume=resume)
        certificate = extend(request, Listener(attempt))
    config = read_json_object(ref.path / CONFIG_NAME, code="model.config_damaged", what="a model config")
    notes = notes_of(config, certificate.plan, certificate.race, certificate.portability)
    for sentence in notes:
        attempt.warn(sentence)
    _write_card(attempt, certificate, notes)
    return Outcome("finished", 0)


def _write_card(attempt: Attempt, certificate: Certificate, notes: tuple[str, ...]) -> None:
    attempt.phase("writing card")
    out = attempt.run_dir / layout.OUTPUT / MODEL
    facts = report.Facts(
        run_dir=attempt.run_dir,
        spec=attempt.spec,
        spec_hash=attempt.spec_hash,
        data_sha256="",
        created=attempt.created,
        device="",
        versions=attempt.versions,
        steps=0,
        tokens=0,
        trained_tokens=0,
        training_seconds=0.0,
        before=None,
        after=None,
        questions=(),
        adapter=card.Adapter(
            path=out.relative_to(attempt.run_dir).as_posix(),
            size_bytes=folder_bytes(out),
            parameters=sum(tensor.elements for tensor in read_headers(out).tensors),
            kind="model",
        ),
        merged=None,
        notes=notes,
        lengths_before=_untouched(certificate),
        lengths_after=certificate.report,
        readers=readers_from(certificate.portability),
    )
    write_card(attempt.run_dir, report.build_card(facts))
    attempt.journal.write(ev.CardReady(t=time.time()))


def _untouched(certificate: Certificate) -> LengthReport | None:
    """The model as it was, where a race measured it beside the methods."""
    rows = certificate.race.rows if certificate.race is not None else ()
    return next((row.report for row in rows if row.method == UNTOUCHED), None)
