"""Runs on another machine, over a real OpenSSH server on loopback: started, mirrored, cut off, controlled, fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.errors import EngineError
from engine.jobs import elsewhere
from engine.jobs.crew import Host
from engine.jobs.summary import RunSummary, summarize
from engine.paths import runs_dir
from engine.remote import farside, hosts, ssh
from engine.remote.send import Copy, Item
from engine.remote.wheel import pack
from engine.resources import demo_model_dir
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.places import PLACES, words_for
from tests.support.cli import ROOT, Result, cli, wait_for
from tests.support.fake_worker import worker_command
from tests.support.sshd import Server, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("remote"),
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is a server"),
]


def processes_of(place: Path) -> list[psutil.Process]:
    """Everything that works below a folder of this test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(place) in word for word in process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def serving(place: Path, **environment: str) -> Iterator[Server]:
    server = Server(place, **environment)
    try:
        yield server
    finally:
        server.stop()
        for process in processes_of(place):
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A host on which every run takes as long as nobody stops it."""
    quick = {"SCALER_WIZARD_WORKER": worker_command(), "FAKE_STEPS": "100000", "FAKE_DELAY": "0.02"}
    with serving(tmp_path_factory.mktemp("sshd") / "box", **quick) as server:
        yield server


@pytest.fixture(autouse=True)
def no_tail_left(own_home: Path) -> Iterator[None]:
    yield
    for process in processes_of(own_home):
        with contextlib.suppress(psutil.Error):
            process.kill()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A job with a model folder and a data file of its own."""
    shutil.copytree(demo_model_dir(), tmp_path / "job" / "my model")
    shutil.copy(ROOT / "tests/data/datasets/chat.jsonl", tmp_path / "job" / "chat.jsonl")
    path = tmp_path / "job" / "spec.toml"
    path.write_text(
        'task = "lora"\nname = "far away"\n[model]\nsource = "my model"\n[data]\ntrain = "chat.jsonl"\nheldout = ""\n'
    )
    return path


def remote(server: Server, *words: str) -> Result:
    return cli("remote", *words, "--python", sys.executable, env={"SCALER_WIZARD_SSH": server.program})


def started(server: Server, spec: Path) -> dict[str, Any]:
    result = remote(server, "box", str(spec), "--json")
    assert result.code == 0, result.text
    return result.json  # type: ignore[no-any-return]


def here(run_id: str) -> RunSummary:
    return summarize(runs_dir() / run_id)


def reached(run_id: str, step: int) -> None:
    wait_for(lambda: here(run_id).step > step, f"the mirror is beyond step {step}")


def same_journals(mirror: Path, there: Path) -> bool:
    return all(
        (mirror / name).read_bytes() == (there / name).read_bytes() for name in ("journal.jsonl", "runner.jsonl")
    )


def test_a_run_there_is_followed_through_lost_connections_and_controlled_from_here(box: Server, spec: Path) -> None:
    packed = pack().sha
    run = started(box, spec)
    mirror, there = Path(run["directory"]), Path(run["directory_there"])
    assert run["copied_bytes"] > (demo_model_dir() / "model.safetensors").stat().st_size
    assert there.is_relative_to(box.far_home)
    copied = next(there.parents[1].glob("remote/inputs/*/model.safetensors"))
    assert copied.read_bytes() == (demo_model_dir() / "model.safetensors").read_bytes()
    reached(run["id"], 5)

    assert box.drop() >= 1
    step = here(run["id"]).step
    reached(run["id"], step + 20)

    box.stop()
    wait_for(lambda: not elsewhere.link_of(mirror).connected, "the mirror notices")
    alone = here(run["id"])
    assert alone.state == "running"
    assert "the run goes on there" in alone.warning
    refused = cli("pause", run["id"])
    assert refused.code == 2
    assert "cannot be reached" in refused.err
    box.start()
    wait_for(lambda: elsewhere.link_of(mirror).connected, "the mirror is back")
    reached(run["id"], alone.step + 20)

    assert cli("pause", run["id"]).code == 0
    wait_for(lambda: here(run["id"]).state == "paused", "the run pauses there and here")
    wait_for(lambda: same_journals(mirror, there), "the mirror is complete")
    wait_for(lambda: not elsewhere.is_followed(mirror), "nothing is followed that does not work")
    again = cli("pause", run["id"], "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "control.not_running")

    paused = here(run["id"]).step
    assert cli("resume", run["id"]).code == 0
    reached(run["id"], paused + 5)
    assert cli("stop", run["id"]).code == 0
    wait_for(lambda: here(run["id"]).state == "stopped", "the run stops")
    wait_for(lambda: same_journals(mirror, there), "byte for byte")

    second = started(box, spec)
    assert second["id"] != run["id"]
    assert second["copied_bytes"] == 0 or pack().sha != packed, "the checkout was edited meanwhile"
    survives_kills(box, second)


def survives_kills(box: Server, second: dict[str, Any]) -> None:
    """Neither a killed tail nor a run killed there is the end of it."""
    run_id, mirror, there = second["id"], Path(second["directory"]), Path(second["directory_there"])
    reached(run_id, 3)

    tails = [process for process in processes_of(mirror) if "engine.remote" in process.cmdline()]
    assert tails
    for process in tails:
        process.kill()
    wait_for(lambda: not elsewhere.is_followed(mirror), "nobody follows")
    size = (mirror / "journal.jsonl").stat().st_size
    assert "Not followed from here" in elsewhere.warning_of(mirror, time.time() + 60)
    with (mirror / "journal.jsonl").open("r+b") as journal:
        journal.truncate(size - 7)  # as if the write had been torn
    elsewhere.follow(mirror)
    wait_for(lambda: (mirror / "journal.jsonl").stat().st_size > size, "it goes on")

    listed = remote(box, "box", "--list", "--json").json
    assert {run["id"]: (run["state"], run["mirrored"]) for run in listed}[run_id] == ("running", True)
    reached(run_id, 15)
    for process in processes_of(there):
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_for(lambda: here(run_id).state == "lost", "the mirror says so")
    assert "neither said goodbye" in here(run_id).cause
    step = here(run_id).step
    assert cli("resume", run_id).code == 0
    reached(run_id, step)
    assert cli("stop", run_id).code == 0
    wait_for(lambda: here(run_id).state == "stopped", "the run stops")
    wait_for(lambda: same_journals(mirror, there), "byte for byte")


def test_a_real_run_there_leaves_its_card_and_output_here(tmp_path: Path) -> None:
    spec = tmp_path / "real.toml"
    spec.write_text(
        'task = "lora"\n[training]\nmax_steps = 2\n[evaluation]\nexact_match_rows = 2\n[data]\nbase_text = ""\n'
    )
    with serving(tmp_path / "real-box") as server:
        run = started(server, spec)
        mirror, there = Path(run["directory"]), Path(run["directory_there"])
        early = cli("remote", "fetch", run["id"])
        assert (early.code, "has no output yet" in early.err) == (2, True), early.text
        wait_for(lambda: not here(run["id"]).state.is_live, "the run ends", seconds=180)
        assert here(run["id"]).state == "finished", here(run["id"])
        card = wait_for(lambda: (result := cli("card", run["id"], "--json")).code == 0 and result, "the card came")
        assert card.json["steps"] == 2

        fetched = cli("remote", "fetch", run["id"], "--json")
        assert fetched.code == 0, fetched.text
        assert "output/adapter/adapter_model.safetensors" in fetched.json["files"]
        for name in fetched.json["files"]:
            assert digest(mirror / name) == digest(there / name)
        assert cli("remote", "fetch", run["id"], "--json").json["copied_bytes"] == 0
        weights = mirror / "output/adapter/adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        mended = cli("remote", "fetch", run["id"], "--json").json
        assert mended["copied_bytes"] == weights.stat().st_size
        assert digest(weights) == digest(there / "output/adapter/adapter_model.safetensors")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(server: Server, *words: str) -> tuple[int, dict[str, str]]:
    result = remote(server, *words, "--json")
    return result.code, json.loads(result.out)["error"]


def test_who_is_not_let_in_is_told_what_to_do(box: Server, spec: Path) -> None:
    host = ssh.Host("box", tuple(box.program.split()))

    def refused(host: ssh.Host = host, **words: str) -> EngineError:
        with pytest.raises(EngineError) as error:
            farside.reach(host, **words)  # type: ignore[arg-type]
        return error.value

    try:
        shared = f"-oControlPath={ssh.control_folder()}/%C"
        subprocess.run([*host.program, shared, "-O", "exit", host.name], capture_output=True, check=False)
        box.write_client(key="wrong_key")
        code, error = refusal(box, "box", str(spec))
        assert (code, error["code"]) == (2, "remote.denied")
        assert "ssh-copy-id" in error["next_step"]
        box.write_client(known_hosts="nothing_known")
        assert refused().code == "remote.host_key_unknown"
        other = (box.place / "wrong_key.pub").read_text()
        (box.place / "changed").write_text(f"[127.0.0.1]:{box.port} {other}")
        box.write_client(known_hosts="changed")
        assert refused().code == "remote.host_key_changed"
    finally:
        box.write_client()
    assert refused(ssh.Host("nobody.invalid", host.program)).code == "remote.unknown_host"
    assert refused(python="/no/such/python").code == "remote.no_python"
    far = farside.reach(host)
    with pytest.raises(EngineError) as full:
        Copy(far, str(box.far_home / "remote"), [Item("0" * 64, 10)], lambda _: None).run(9, print, print)
    assert (full.value.code, int(full.value.exit_code)) == ("remote.no_room", 4)
    with pytest.raises(EngineError) as unwritable:
        farside.order(far, "look", home="/proc/nowhere")
    assert unwritable.value.code == "remote.disk"
    assert not cli("runs", "--json").json, "nothing was left behind"


def test_machines_of_one_run_are_looked_at_before_it_starts(
    box: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ssh.PROGRAM, box.program)
    hosts.check_hosts((Host("localhost"), Host("box")))
    with monkeypatch.context() as other:
        other.setattr(hosts, "__version__", "0.0.9")
        with pytest.raises(EngineError) as error:
            hosts.check_hosts((Host("box"),))
    assert error.value.code == "hosts.no_program"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALER_WIZARD_HOME", "/proc/self/cwd/home")  # another folder in every process
    with pytest.raises(EngineError) as error:
        hosts.check_hosts((Host("box"),))
    assert error.value.code == "hosts.not_shared"
    assert not list((tmp_path / "home" / "runs").iterdir()), "nothing is left behind"


def test_the_wizard_hears_the_steps_and_is_given_the_mirror(
    box: Server, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_SSH", box.program)
    heard: list[str] = []
    words = words_for(PLACES[0], "box", spec)
    told = ask_twin(*words, "--python", sys.executable, say=heard.append)
    assert heard[-1].startswith("Started there as")
    assert here(Path(told["directory"]).name).state.is_live
    assert cli("stop", told["id"]).code == 0
