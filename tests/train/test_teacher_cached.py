"""A teacher's logits that are on disk already decide in which form they are used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from engine.data.rows import EncodedRow, RowKind
from engine.distill.cache_files import MANIFEST, Manifest
from engine.jobs.spec import EvaluationSection, JobSpec, Task
from engine.jobs.spec_distillation import DistillationSection, Held
from engine.train.found_teacher import FoundTeacher
from engine.train.teacher_scores import SCORES, TeacherScores, keep_scores, kept_scores, scores_key
from engine.train.teaching import Teaching

pytestmark = pytest.mark.slow
ROWS = (EncodedRow(input_ids=(1, 2, 3), trained=(False, True, True), line=1, kind=RowKind.CHAT, full_length=3),)


def test_logits_of_another_form_are_used_where_the_chosen_one_has_none(tmp_path: Path) -> None:
    section = DistillationSection(teacher="large", held=Held.CACHED, cache=str(tmp_path))
    spec = JobSpec(task=Task.LORA, distillation=section)
    warned: list[tuple[str, str]] = []
    attempt: Any = SimpleNamespace(
        spec=spec, device=SimpleNamespace(compute_dtype=torch.bfloat16), warn=lambda *words: warned.append(words)
    )
    rows: Any = SimpleNamespace(train=ROWS, heldout=())
    found = FoundTeacher("large", Path(), None, False, 10, "0" * 64, 1, 0)

    def teaching() -> Teaching:
        return Teaching(attempt, found, Held.CACHED, rows)

    def complete(form: Held) -> None:
        order = teaching()._order(form)
        folder = tmp_path / order.folder_name
        folder.mkdir()
        (folder / MANIFEST).write_bytes(msgspec.json.encode(Manifest(order=order, shards=())))

    assert teaching().cached_form(Held.RESIDENT) is Held.RESIDENT
    complete(Held.NF4)
    assert teaching().cached_form(Held.NF4) is Held.NF4
    assert warned == []
    assert teaching().cached_form(Held.RESIDENT) is Held.NF4
    ((what, next_step),) = warned
    assert "4 bits, from an earlier run" in what
    assert str(tmp_path) in next_step
    complete(Held.RESIDENT)
    assert teaching().cached_form(Held.RESIDENT) is Held.RESIDENT
    assert teaching().cached_form(Held.OFFLOADED) is Held.OFFLOADED
    assert len(warned) == 1


def test_scores_are_kept_by_the_rows_that_were_measured(tmp_path: Path) -> None:
    key, other = (scores_key(ROWS, EvaluationSection(exact_match_rows=rows)) for rows in (1, 2))
    keep_scores(tmp_path, key, TeacherScores(0.5, 0.75))
    keep_scores(tmp_path, other, TeacherScores(None, None))
    assert kept_scores(tmp_path, key) == TeacherScores(0.5, 0.75)
    assert kept_scores(tmp_path, other) == TeacherScores()
    (tmp_path / SCORES).write_text("{")
    assert kept_scores(tmp_path, key) == TeacherScores()
