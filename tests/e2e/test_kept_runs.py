"""Runs on machines that are taken away: the job file's own command on one machine after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from engine.jobs import checkpoints, layout
from tests.support.cli import ROOT, cli, environment, wait_for
from tests.support.fake_worker import worker_command

pytestmark = [pytest.mark.slow]

WRAPPER = '#!/bin/sh\nexec "{python}" "$@"\n'


class Machine:
    """A rented machine as SkyPilot would set it up: a home folder with what the job file mounts, and nothing else."""

    def __init__(self, job: Path, home: Path, bucket: Path) -> None:
        self.home = home
        self.job = yaml.safe_load(job.read_text())
        for target, local in self.job["file_mounts"].items():
            place = home / target.removeprefix("~/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(local, dict):
                place.symlink_to(bucket)
            else:
                (shutil.copytree if Path(local).is_dir() else shutil.copy)(local, place)
        python = home / "scaler" / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(WRAPPER.format(python=sys.executable))
        python.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """The job's `run` command."""
        quick = {"SCALER_WIZARD_WORKER": worker_command(), "FAKE_STEPS": "100000", "FAKE_DELAY": "0.02"}
        return subprocess.Popen(
            ["bash", "-c", self.job["run"]],
            env=environment(**{"HOME": str(self.home), **quick, **variables}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
        )

    def vanish(self) -> None:
        """Every process of it is gone, then its disk."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.home) in word for word in process.cmdline()):
                    process.kill()
        shutil.rmtree(self.home)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "tests/data/datasets/chat.jsonl", tmp_path / "chat.jsonl")
    (tmp_path / "spec.toml").write_text('task = "lora"\nname = "kept"\n[data]\ntrain = "chat.jsonl"\nheldout = ""\n')
    result = cli("export", "sky", "spec.toml", "-o", "job.yaml", "--bucket", "s3://b-b-b/runs", cwd=tmp_path)
    assert result.code == 0, result.text
    (tmp_path / "bucket").mkdir()
    return tmp_path / "job.yaml"


def kept_steps(bucket: Path) -> list[int]:
    """Steps of the checkpoints that are whole in the bucket."""
    # A checkpoint's own folder is not listed: the keeper may be removing it at this moment.
    folders = bucket.glob(f"runs/*/{layout.CHECKPOINTS}/step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in folders if (path / checkpoints.MANIFEST).is_file())


def test_a_run_goes_on_where_the_next_machine_finds_it_until_it_is_finished(job: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    first = Machine(job, tmp_path / "one", bucket)
    process = first.start()
    wait_for(lambda: kept_steps(bucket)[-1:] > [20], "checkpoints reach the bucket")
    (run_id,) = [path.name for path in (first.home / "scaler/home/runs").iterdir() if not path.name.startswith(".")]
    first.vanish()
    process.communicate()

    kept = kept_steps(bucket)[-1]
    second = Machine(job, tmp_path / "two", bucket)
    process = second.start()
    journal = second.home / "scaler/home/runs" / run_id / "journal.jsonl"
    wait_for(lambda: journal.exists() and f'"resumed_step":{kept}' in journal.read_text(), "it goes on from there")
    wait_for(lambda: kept_steps(bucket)[-1:] > [kept], "new checkpoints reach the bucket")
    process.send_signal(signal.SIGTERM)  # a warning this time
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "paused" in told
    paused = kept_steps(bucket)[-1]
    second.vanish()

    third = Machine(job, tmp_path / "three", bucket)
    last = {"FAKE_STEPS": str(paused + 5), "FAKE_DELAY": "0.001", "FAKE_OUTPUT": "yes"}
    process = third.start(**last)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    output = third.home / "scaler/home/runs" / run_id / "output"
    made = {path.name: path.read_bytes() for path in output.rglob("*.*")}
    assert set(made) == {"adapter_config.json", "weights.bin"}
    third.vanish()
    for number, lost in enumerate([False, True]):
        if lost:
            shutil.rmtree(next(bucket.rglob("output")))
        later = Machine(job, tmp_path / f"later{number}", bucket)
        told, _ = later.start(**last).communicate(timeout=90)
        assert ("finished already" in told) is not lost, told
        output = later.home / "scaler/home/runs" / run_id / "output"
        assert {path.name: path.read_bytes() for path in output.rglob("*.*")} == made
        later.vanish()
        assert {path.name: path.read_bytes() for path in next(bucket.rglob("output")).rglob("*.*")} == made


def test_an_upload_that_was_cut_off_is_passed_over_and_large_files_are_kept(tmp_path: Path) -> None:
    from engine.jobs.spec import JobSpec
    from engine.jobs.store import load_state
    from engine.paths import runs_dir
    from engine.remote.keep import Keeper, restore
    from tests.support.fake_worker import recorded_run

    spec, bucket = JobSpec(name="recorded"), tmp_path / "bucket"
    run_dir = recorded_run(40, spec=spec, outcome="paused")
    model = run_dir / "stages" / "01" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(os.urandom(1000))
    (model / "config.json").write_text("{}")
    (model / "linked.safetensors").symlink_to("/somewhere/else.safetensors")
    keeper = Keeper(run_dir, spec, bucket)
    keeper.look(now=True)
    weights = (model / "model.safetensors").read_bytes()
    with (run_dir / "journal.jsonl").open("a") as journal:
        journal.write("\n")
    keeper.look(now=True)
    newest = max(bucket.rglob("state-*.tar"))
    newest.write_bytes(newest.read_bytes()[:2000])
    shutil.rmtree(runs_dir())

    found = restore(bucket, spec, tmp_path)
    assert found == run_dir
    assert load_state(found).step == 40
    assert (model / "model.safetensors").read_bytes() == weights
    assert os.readlink(model / "linked.safetensors") == "/somewhere/else.safetensors"
    assert restore(bucket, JobSpec(name="another"), tmp_path) is None
    (next(bucket.rglob("large/*"))).write_bytes(b"half")
    shutil.rmtree(runs_dir())
    assert restore(bucket, spec, tmp_path) is None, "a model that is not whole is no model"


def test_that_a_run_is_over_is_told_only_with_its_output_and_believed_only_with_it(tmp_path: Path) -> None:
    from engine.jobs.spec import JobSpec
    from engine.jobs.summary import quick_state
    from engine.paths import runs_dir
    from engine.remote.keep import OVER, Keeper, keeping, restore
    from tests.support.fake_worker import recorded_run, write_recorded_journal

    spec, bucket = JobSpec(name="recorded"), tmp_path / "bucket"
    run_dir = recorded_run(40, spec=spec, outcome="paused")
    keeper = Keeper(run_dir, spec, bucket)
    keeper.look(now=True)
    write_recorded_journal(run_dir, 40, outcome="finished")
    (run_dir / "output" / "adapter").mkdir(parents=True)
    for name in ("one", "two"):
        (run_dir / "output" / "adapter" / name).write_bytes(os.urandom(1000))
    made = {path.name: path.read_bytes() for path in run_dir.glob("output/adapter/*")}
    assert quick_state(run_dir).state in OVER
    before = sorted(bucket.rglob("*"))
    keeper.look(now=True)
    assert sorted(bucket.rglob("*")) == before, "nothing says so while its output is not there"
    shutil.copytree(runs_dir(), tmp_path / "here")
    shutil.copytree(bucket, tmp_path / "early")
    keeper.finish()
    shutil.copytree(bucket, tmp_path / "whole")

    def found() -> Path:
        shutil.rmtree(runs_dir())
        one = restore(bucket, spec, tmp_path)
        assert one is not None
        return one

    assert {path.name: path.read_bytes() for path in found().glob("output/adapter/*")} == made
    for lost in ("one", "two", "done.json"):
        for content in (None, b"", b"x" * 1000):
            shutil.rmtree(bucket)
            shutil.copytree(tmp_path / "whole", bucket)
            victim = next(bucket.rglob(lost))
            victim.unlink() if content is None else victim.write_bytes(content)
            assert quick_state(found()).state not in OVER, f"{lost} is not there, so the run goes on from before"

    for kept in ("early", "whole"):  # the machine that ended it is still there: it makes good what is lacking
        shutil.rmtree(bucket)
        shutil.copytree(tmp_path / kept, bucket)
        for path in bucket.rglob("output/adapter/two"):
            path.write_bytes(b"y" * 1000)
        shutil.rmtree(runs_dir())
        shutil.copytree(tmp_path / "here", runs_dir())
        with keeping(run_dir, spec, bucket):
            pass
        assert {path.name: path.read_bytes() for path in found().glob("output/adapter/*")} == made
