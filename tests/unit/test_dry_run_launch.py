"""The dry run as a process: asked once, kept, refused in words, and an estimate whose parts sum to the whole."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from planning import DEMO, card, machine

from engine.advise import dry_run as launcher
from engine.advise.dry_run import config_of, dry_run, dry_run_of, dry_runs_dir, estimate_from
from engine.advise.spec_plan import workload_of
from engine.errors import EngineError
from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Origin, Range
from engine.estimate.memory import estimate_memory
from engine.estimate.rehearsal import DryRun
from engine.estimate.workload import DeviceKind, Method, Packing4Bit, Purpose, Workload
from engine.jobs.spec import DataSection, JobSpec, Task, TrainingSection
from engine.models.analyze import analyze_model
from engine.models.architecture import Architecture
from engine.models.resolve import resolve_model
from engine.units import MIB
from tests.support.cli import cli

CARD = machine(card("RTX 4090", 24))
WORK = Workload(DEMO, packing=Packing4Bit.NF4, sequence=128)
ANSWER = DryRun(
    total=1000.0 * MIB,
    stretch="loss",
    kinds={"weights": 400.0 * MIB, "adapter": 100.0 * MIB, "activations": 200.0 * MIB, "logits and loss": 300.0 * MIB},
    depths=(2, 3),
    versions={"torch": "2.13.0"},
)


def demo_config() -> dict[str, object]:
    return config_of(resolve_model("demo").config)


def kept() -> list[Path]:
    return sorted(dry_runs_dir().iterdir())


class Interpreter:
    """Stands before the real one and counts how often it is started; `answer` replaces what it would say."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "starts"
        self.path = folder / "python"
        self.answers("exec " + sys.executable + ' "$@"')

    def answers(self, script: str) -> None:
        self.path.write_text(f"#!/bin/sh\necho started >> {self.log}\n{script}\n")
        self.path.chmod(0o755)

    @property
    def starts(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    found = Interpreter(tmp_path)
    monkeypatch.setattr(sys, "executable", str(found.path))
    return found


@pytest.mark.slow
def test_a_job_is_followed_once_and_then_answered_from_disk(interpreter: Interpreter) -> None:
    first = dry_run_of(WORK, demo_config())
    assert first.total > 0
    assert first.depths == (2, 3)
    assert interpreter.starts == 1
    assert dry_run_of(WORK, demo_config()) == first
    assert interpreter.starts == 1
    path = kept()[0]
    path.write_bytes(path.read_bytes()[:100])
    again = dry_run_of(WORK, demo_config())
    assert interpreter.starts == 2, "a damaged answer is none"
    assert (again.total, again.kinds) == (first.total, first.kinds)
    assert dry_run_of(WORK, demo_config()) == again, "and is written anew"
    assert interpreter.starts == 2


def test_another_job_and_other_libraries_ask_anew(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter.answers(f"cat > /dev/null; echo '{msgspec.json.encode(ANSWER).decode()}'")
    assert dry_run_of(WORK, demo_config()) == ANSWER
    dry_run_of(replace(WORK, sequence=256), demo_config())
    assert interpreter.starts == 2
    monkeypatch.setattr(launcher, "_version", lambda name: "99.0")
    dry_run_of(WORK, demo_config())
    assert interpreter.starts == 3
    assert len(kept()) == 3
    assert not [path for path in kept() if path.suffix != ".json"], "nothing half-written stays"


def test_an_answer_that_cannot_be_kept_is_still_an_answer(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interpreter.answers(f"cat > /dev/null; echo '{msgspec.json.encode(ANSWER).decode()}'")
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "a-file"))
    assert dry_run_of(WORK, demo_config()) == ANSWER


def test_no_card_is_touched_and_what_libraries_print_stays_inside(
    interpreter: Interpreter, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    seen = tmp_path / "seen"
    interpreter.answers(
        f'cat > /dev/null; echo "<$CUDA_VISIBLE_DEVICES>" > {seen}; echo noise >&2; '
        f"echo '{msgspec.json.encode(ANSWER).decode()}'"
    )
    dry_run_of(WORK, demo_config())
    assert seen.read_text() == "<>\n"
    assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_or_hangs_is_told(interpreter: Interpreter) -> None:
    interpreter.answers("echo 'ImportError: no torch here' >&2; exit 1")
    with pytest.raises(EngineError) as caught:
        dry_run_of(WORK, demo_config())
    assert caught.value.code == "dry_run.died"
    assert caught.value.cause == "ImportError: no torch here"
    interpreter.answers("kill -9 $$")
    with pytest.raises(EngineError, match="without an answer") as caught:
        dry_run_of(WORK, demo_config())
    assert "signal 9" in caught.value.cause
    interpreter.answers("exec tail -f /dev/null")
    with pytest.raises(EngineError, match=r"within 0\.2 s") as caught:
        dry_run_of(WORK, demo_config(), limit_seconds=0.2)
    assert caught.value.code == "dry_run.slow"
    assert not dry_runs_dir().exists(), "a failure is not kept"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"model_type": "martian"}, "rehearsal.config", "martian"),
        ({"model_type": ""}, "rehearsal.config", "model_type ''"),
        ({"hidden_size": "wide"}, "rehearsal.config", "hidden_size"),
        ({"num_attention_heads": 0}, "rehearsal.config", "modulo by zero"),
    ],
    ids=["unknown", "unnamed", "mistyped", "impossible"],
)
def test_a_config_that_cannot_be_built_is_refused_in_words(changes: dict[str, object], code: str, named: str) -> None:
    with pytest.raises(EngineError) as caught:
        dry_run_of(WORK, {**demo_config(), **changes})
    error = caught.value
    assert error.code.startswith(code)
    assert named in " ".join(error.as_dict().values())
    assert error.next_step
    assert int(error.exit_code) == 2
    assert not dry_runs_dir().exists()


@pytest.mark.parametrize(
    ("work", "what"),
    [
        (replace(WORK, shards=2), "sharding"),
        (replace(WORK, teacher=DEMO), "teacher"),
        (replace(WORK, purpose=Purpose.GENERATE), "generation"),
        (replace(WORK, offload_activations=True, checkpointing=False), "host RAM"),
        (replace(WORK, packing=Packing4Bit.GPTQ), "GPTQ"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_followed_is_refused_by_name(work: Workload, what: str, interpreter: Interpreter) -> None:
    with pytest.raises(EngineError, match=what):
        dry_run_of(work, demo_config())
    assert interpreter.starts == 0


def test_the_parts_sum_to_likely_and_are_named_as_the_formula_names_them() -> None:
    for work in (
        WORK,
        replace(WORK, device=DeviceKind.CPU),
        Workload(DEMO, method=Method.FULL, sequence=128),
        Workload(DEMO, purpose=Purpose.EVALUATE, sequence=128),
    ):
        answer = ANSWER if work.method is Method.ADAPTER else msgspec.structs.replace(ANSWER, total=900.0 * MIB)
        followed, formula = estimate_from(answer, work), estimate_memory(work)
        assert [part.name for part in followed.breakdown] == [part.name for part in formula.breakdown]
        assert sum(part.amount for part in followed.breakdown) == pytest.approx(followed.likely, rel=1e-9)
        assert followed.low < followed.likely < followed.high
        assert followed.origin is Origin.DRY_RUN
        assert all(part.formula and part.source for part in followed.breakdown)


def test_what_runs_allocated_over_the_formula_does_not_touch_what_was_followed() -> None:
    factor = Range(1.5, 1.5, 1.5)
    measured = Calibration(Origin.MEASURED, "runs here", Range(MIB, MIB, MIB), Range(0.0, 0.0, 0.0), factor)
    found = estimate_from(ANSWER, WORK, measured)
    assert found.likely == ANSWER.total + WORK.workspace_bytes + MIB


def test_the_text_part_of_a_multimodal_config_says_what_kind_of_model_it_is() -> None:
    assert config_of({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 8}}) == {
        "model_type": "gemma3_text",
        "hidden_size": 8,
    }
    assert config_of({"model_type": "other", "text_config": {"hidden_size": 8}})["model_type"] == "other"
    assert config_of({"model_type": "llama", "hidden_size": 8}) == {"model_type": "llama", "hidden_size": 8}


@pytest.mark.slow
def test_a_spec_is_followed_near_what_the_formula_says() -> None:
    spec = JobSpec(task=Task.QLORA, data=DataSection(max_length=256), training=TrainingSection(batch_size=4))
    found = dry_run(spec, demo_architecture(), CARD)
    work = workload_of(spec, demo_architecture(), CARD)
    formula = estimate_memory(work)
    assert found.unit == "bytes"
    assert found.origin is Origin.DRY_RUN
    assert found.likely == pytest.approx(formula.likely, rel=0.02)
    assert sum(part.amount for part in found.breakdown) == pytest.approx(found.likely, rel=1e-9)


def demo_architecture() -> Architecture:
    return analyze_model(resolve_model("demo"))


@pytest.mark.slow
def test_the_command_prints_what_was_followed(tmp_path: Path) -> None:
    home = {"SCALER_WIZARD_HOME": os.environ["SCALER_WIZARD_HOME"]}
    told = cli("estimate", "demo", "--approach", "qlora", "--gpu", "RTX4090", "--dry-run", "--json", env=home)
    assert told.code == 0, told.text
    assert told.err == ""
    memory = told.json["memory"]
    assert told.json["origin"] == "dry run"
    assert sum(memory["breakdown"].values()) == pytest.approx(memory["likely"], rel=1e-6)
    assert len(kept()) == 1
    assert json.loads(kept()[0].read_text())["versions"]["torch"]
