"""What is refused before a run exists."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec, Optimizer, Task, TrainingSection
from engine.jobs.spec_distillation import DistillationSection, Held
from engine.jobs.store import list_runs
from scaler_tui.preflight import check


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT])
def test_an_optimizer_this_machine_cannot_run_is_refused_before_the_start(optimizer: Optimizer, tmp_path: Path) -> None:
    from engine.hardware.detect import detect

    if any(gpu.vendor == "nvidia" for gpu in detect().gpus):
        pytest.skip("this machine has the card")
    spec = JobSpec(training=TrainingSection(optimizer=optimizer))
    with pytest.raises(EngineError) as refused:
        check(spec, base=tmp_path, force=False)
    assert refused.value.exit_code is ExitCode.BAD_INPUT
    assert "NVIDIA" in refused.value.what
    assert list_runs() == []


def test_a_teacher_in_4_bits_without_their_library_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.hardware import detect

    here = detect.detect()
    monkeypatch.setattr(detect, "detect", lambda: replace(here, libraries={**here.libraries, "bitsandbytes": None}))
    spec = JobSpec(task=Task.LORA, distillation=DistillationSection(teacher="demo", held=Held.NF4))
    with pytest.raises(EngineError) as refused:
        check(spec, base=tmp_path, force=False)
    assert (refused.value.code, refused.value.key) == ("spec.no_bitsandbytes", "distillation.held")
    assert list_runs() == []


def test_what_ships_with_the_program_is_not_taken_for_a_file(tmp_path: Path) -> None:
    from engine.jobs.spec import DataSection
    from engine.jobs.spec_toml import with_absolute_paths

    spec = with_absolute_paths(JobSpec(data=DataSection(train="rows.jsonl", heldout="", base_text="general")), tmp_path)
    assert spec.data.base_text == "general"
    assert spec.data.train == str(tmp_path / "rows.jsonl")


def refused_file(text: str, folder: Path) -> str:
    """What `start` says of a spec file that it does not start."""
    from engine.jobs.spec_toml import load_spec, naming_lines

    path = folder / "job.toml"
    path.write_text(text)
    with pytest.raises(EngineError) as refused, naming_lines(path):
        check(load_spec(path), base=folder, force=False)
    assert list_runs() == []
    return refused.value.what.removeprefix(f"{path}: ")


def test_what_only_model_machine_and_text_can_tell_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    (tmp_path / "web.txt").write_text("Some words of text. " * 200)
    web = '[[sources]]\nname = "web"\npath = "web.txt"\n'
    head = 'task = "full"\n'
    shrinks = refused_file(f"{head}{web}[[stages]]\nmax_tokens = 9000\n[[stages]]\nlayers = 4\n", tmp_path)
    assert shrinks == "line 8: stages[2].layers = 4 would shrink the model: it has 8 before this stage."
    assert refused_file(f"{head}{web.replace('web.txt', 'gone.txt')}", tmp_path).startswith("line 4: Source 'web'")
    nothing = refused_file(f'{head}{web}[training]\ntrainable = ["*.ffn.*"]\n', tmp_path)
    assert nothing.startswith('line 6: training.trainable = "*.ffn.*" is the name of no parameter')
    unknown = refused_file(f"{head}{web.replace('web.txt', 'hub:a/b')}[training]\nepochs = 2.0\n", tmp_path)
    assert unknown.startswith("line 6: How many tokens source 'web' holds is not known")
    few = refused_file("[training]\nbatch_size = 512\n[distributed]\nprocesses = 500\n", tmp_path)
    assert few.startswith("line 4: 500 processes cannot share ")
    task = tmp_path / "mine.yaml"
    task.write_text("task: my_task\n")
    limit = refused_file('[evaluation]\ntasks = ["mine.yaml"]\n[[retention]]\non = "your_task"\n', tmp_path)
    assert limit.startswith('line 4: retention[1].on = "your_task" is nothing that this job measures')


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.base_text", '[data]\nbase_text = "gone"  # here\n'),
        ("data.heldout", '[data]\nheldout = "gone"  # here\n'),
        ("data.base_text", '[data]\nbase_text = "empty"  # here\n'),
        ("suites[1].path", '[[suites]]\nname = "x"\npath = "gone"  # here\n'),
        ("suites[1].path", '[[suites]]\nname = "x"\npath = "empty"  # here\n'),
        ("expansion.proof_text", '[expansion]\nproof_text = "gone"  # here\n[[stages]]\nlayers = 9\n'),
        ("evaluation.tasks[2]", '[evaluation]\ntasks = ["demo", "gone.yaml"]  # here\n'),
    ],
)
def test_a_file_that_is_not_there_is_named_with_its_line_before_anything_starts(
    key: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaler_tui.commands.schedule import schedule

    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    (tmp_path / "web.txt").write_text("Some words of text. " * 200)
    (tmp_path / "empty").mkdir()
    head = 'task = "full"\n[training]\nmax_tokens = 9000\n[[sources]]\nname = "web"\npath = "web.txt"\n'
    told = refused_file(head + text, tmp_path)
    line = (head + text).partition("# here")[0].count("\n") + 1
    assert told.startswith(f"line {line}: {key} names {tmp_path}/")
    with pytest.raises(EngineError) as refused:
        schedule(argparse.Namespace(spec=tmp_path / "job.toml", gpu="", json=False))
    assert refused.value.what == f"{tmp_path / 'job.toml'}: {told}"


def test_rows_that_are_not_there_are_named_with_their_line(tmp_path: Path) -> None:
    assert refused_file('[data]\ntrain = "gone.jsonl"\n', tmp_path).startswith("line 2: data.train names ")


def test_a_stream_that_may_start_comes_with_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.jobs.spec import SourceSection, StreamSection, Task

    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    (tmp_path / "web.txt").write_text("Some words of text. " * 2000)
    spec = JobSpec(
        task=Task.FULL,
        sources=(SourceSection(name="web", path="web.txt"),),
        training=TrainingSection(max_tokens=20_000),
    )
    checked = check(spec, base=tmp_path, force=False)
    assert checked.job is not None
    assert checked.spec.prediction.seconds_likely == pytest.approx(checked.job.whole.hours.likely * 3600, abs=0.1)
    assert checked.spec.sources[0].path == str(tmp_path / "web.txt")
    alone = "web seems to be a single document"
    assert any(alone in note and "no held-out loss" in note for note in checked.notes)
    (tmp_path / "web.txt").write_text("\n\n".join("Some words of text. " * 500 for _ in range(20)))
    few = check(msgspec.structs.replace(spec, stream=StreamSection(text_kb=1)), base=tmp_path, force=False)
    assert not any("held-out" in note for note in few.notes), "of twenty documents one is set aside"
