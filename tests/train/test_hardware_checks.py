"""What this device cannot do is refused before anything is loaded."""

from __future__ import annotations

import sys

import pytest
import torch

from engine.errors import EngineError
from engine.jobs.spec import JobSpec, Task
from engine.jobs.spec_distillation import DistillationSection, Held
from engine.train.environment import Device
from engine.train.model import check_hardware

pytestmark = pytest.mark.slow


def test_a_teacher_in_4_bits_needs_their_library_as_a_base_in_4_bits_does(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("cpu", "test", torch.float32)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(EngineError) as base:
        check_hardware(JobSpec(task=Task.QLORA), device)
    assert 'task = "lora"' in base.value.next_step
    with pytest.raises(EngineError) as teacher:
        check_hardware(JobSpec(task=Task.LORA, distillation=DistillationSection(teacher="demo", held=Held.NF4)), device)
    assert teacher.value.code == base.value.code == "train.no_bitsandbytes"
    assert 'distillation.held = "auto"' in teacher.value.next_step
    check_hardware(JobSpec(task=Task.LORA, distillation=DistillationSection(teacher="demo")), device)
