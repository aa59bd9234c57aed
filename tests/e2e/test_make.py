"""What `make` does and does not do again: on a stand-in environment that records calls, and once on the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import ROOT
from tests.support.fake_worker import worker_command

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

_PYTHON = """#!/bin/sh
# A stand-in for python3: real for -c, records pip, makes an environment out of stand-ins.
case "$1 $2" in
  "-c "*) exec {python} "$@" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp {place}/app "$3/bin/scaler-wizard" ;;
  "-m pip") echo "$@" >> {place}/pip.log; [ ! -e {place}/pip-fails ] ;;
  *) echo "python $@" >> {place}/calls.log ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the files that make looks at, and a python3 that installs nothing."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "app").write_text(f'#!/bin/sh\necho "APP $@"\necho "APP $@" >> {tmp_path}/calls.log\n')
    (tmp_path / "python3").write_text(_PYTHON.format(python=sys.executable, place=tmp_path))
    for name in ("app", "python3"):
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words],
        cwd=place,
        env={**clean_environment(), "PATH": f"{place}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """Without what an outer make passes on."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def installs(place: Path) -> list[str]:
    log = place / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def make_newer(path: Path) -> None:
    ahead = time.time() + 5
    os.utime(path, (ahead, ahead))


def test_the_first_run_installs_the_lock_and_the_program_then_runs_the_demo_headless(place: Path) -> None:
    result = make(place, "run")
    assert result.returncode == 0, result.stderr
    first, second = installs(place)
    assert "install -r requirements.lock" in first
    assert second.endswith("-e .")
    assert (place / "calls.log").read_text() == "APP demo\n"


def test_the_second_run_installs_nothing_and_only_starts_the_app(place: Path) -> None:
    make(place, "run")
    before = installs(place)
    assert make(place, "run").stdout == "APP demo\n"
    assert installs(place) == before


@pytest.mark.parametrize("target", ["test", "test-fast", "check", "bench", "screenshots", "gpu-check"])
def test_other_targets_install_once(place: Path, target: str) -> None:
    assert make(place, "-n", target).returncode == 0
    make(place, ".venv/.dev")
    before = installs(place)
    assert "requirements-dev.lock" in before[-1]
    for _ in range(2):
        make(place, target)  # what it runs are stand-ins; only the set-up matters here
    assert installs(place) == before


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_changed_lock_is_installed(place: Path, changed: str) -> None:
    make(place, "run")
    before = installs(place)
    make_newer(place / changed)
    make(place, "run")
    assert len(installs(place)) == len(before) + 2


def test_an_install_that_failed_is_tried_again_and_nothing_is_started(place: Path) -> None:
    (place / "pip-fails").touch()
    assert make(place, "run").returncode != 0
    assert not (place / "calls.log").exists()
    (place / "pip-fails").unlink()
    assert make(place, "run").returncode == 0
    assert (place / "calls.log").read_text() == "APP demo\n"


def test_a_python_that_is_too_old_is_named(place: Path) -> None:
    old = place / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = make(place, "run", f"PYTHON={old}")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stdout + result.stderr
    assert not (place / ".venv").exists()


def test_the_continuous_integration_script_runs_the_documented_targets() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make check" in script
    assert "make test" in script
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("checkout")
def test_make_run_works_twice_in_this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quick stand-in for the worker; the environment must be the one that make made."""
    fresh = subprocess.run(["make", "-q", ".venv/.run"], cwd=ROOT, env=clean_environment(), check=False)
    if fresh.returncode != 0:
        pytest.skip("this environment is older than its lock; run make once")
    monkeypatch.setenv("SCALER_WIZARD_WORKER", worker_command())
    for _ in range(2):
        result = subprocess.run(
            ["make", "run"],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        assert "is finished" in result.stderr
        assert "Installing" not in result.stdout
