"""How many processes a spec is started and resumed with, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs import layout
from engine.jobs.crew import Crew, commands, read_hosts
from engine.jobs.launch import crew_of, launch, start
from engine.jobs.liveness import host_name
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import dump_spec
from engine.jobs.store import create_run
from scaler_tui.cli import build_parser, main
from scaler_tui.commands.work import _on_processes

SPEC = {"training": {"batch_size": 2, "gradient_accumulation": 4}}


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(dump_spec(msgspec.convert(SPEC, JobSpec)))
    return path


def asked(words: list[str]) -> JobSpec:
    return _on_processes(msgspec.convert(SPEC, JobSpec), build_parser(words).parse_args(words))


def test_processes_on_the_command_line_become_part_of_the_spec(spec_file: Path, tmp_path: Path) -> None:
    assert asked(["run", str(spec_file)]).distributed.world == 1
    assert asked(["start", str(spec_file), "--processes", "4"]).distributed.processes == 4
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("localhost:3\nlocalhost:3\n")
    section = asked(["run", str(spec_file), "--nodes", str(hosts)]).distributed
    assert (section.nodes, section.processes, section.world) == (2, 3, 6)


def test_more_processes_than_a_step_has_sequences_are_refused(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(spec_file), "--processes", "9", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "9 processes" in error["what"]
    assert "8 sequences" in error["what"]


def test_a_resume_with_another_number_is_remembered(tmp_path: Path) -> None:
    spec = msgspec.convert(SPEC | {"distributed": {"processes": 2, "restarts": 1}}, JobSpec)
    first = crew_of(tmp_path, spec)
    assert first is not None
    assert (first.world, first.restarts) == (2, 1)
    other = crew_of(tmp_path, spec, processes=4)
    assert other is not None
    assert other.world == 4
    later = crew_of(tmp_path, spec)
    assert later is not None
    assert later.world == 4
    assert crew_of(tmp_path / "elsewhere", msgspec.convert(SPEC, JobSpec)) is None


def test_machines_of_a_run_keep_their_slots_until_a_number_is_named(tmp_path: Path) -> None:
    spec = msgspec.convert(SPEC | {"distributed": {"processes": 2, "nodes": 2}}, JobSpec)
    (tmp_path / layout.HOSTS).write_text("a:3\nb:3\n")
    listed = crew_of(tmp_path, spec)
    assert listed is not None
    assert listed.world == 6
    named = crew_of(tmp_path, spec, processes=1)
    assert named is not None
    assert named.world == 2


def test_machines_that_nobody_has_named_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path))
    spec = msgspec.convert(SPEC | {"distributed": {"nodes": 2}}, JobSpec)
    with pytest.raises(EngineError) as refused:
        start(spec)
    assert refused.value.code == "run.nodes_missing"
    assert not list(tmp_path.rglob(layout.SPEC)), "no run was made"
    run_dir = create_run(spec)
    for processes in (0, 4):
        with pytest.raises(EngineError) as refused:
            launch(run_dir, processes=processes)
        assert refused.value.code == "run.nodes_missing"
    assert not (run_dir / layout.RUNNER_JOURNAL).exists()


def test_this_machine_is_known_by_its_own_name_and_takes_no_ssh(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text(f"{host_name()}:1\nnode2:1\n")
    crew = Crew(processes=1, hosts=read_hosts(tmp_path / "hosts.txt"))
    here, there = commands(crew, tmp_path, {})
    assert here[0] != "ssh"
    assert there[0] == "ssh"
    assert any(word.startswith(f"--rdzv-endpoint={host_name()}:") for word in here)
