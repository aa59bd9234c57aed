"""The built wheel in an empty environment, used from another folder: the program and its data are all there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.cli import ROOT, wait_for
from tests.support.fake_worker import worker_command

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

READS_QUESTIONS = "tasks/questions.py"
"""The one script among the demo's data: lm-eval calls it for the questions beside it."""
OURS = ("scaler_tui", "scaler_wizard", "_scaler_wizard", "engine", "__editable__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment that holds the wheel. The other packages are this environment's, each by
    a link, so that neither the checkout nor anything an editable install left can stand in for the wheel."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    borrowed = place / "borrowed"
    borrowed.mkdir()
    for name in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_path(name)).iterdir():
            if not entry.name.startswith(OURS) and entry.suffix != ".pth" and not (borrowed / entry.name).exists():
                (borrowed / entry.name).symlink_to(entry)
    python = place / "venv" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(where.stdout.strip()) / "borrowed.pth").write_text(f"{borrowed}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    return python.parent


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def call(program: Path, *words: str, cwd: Path, code: int = 0) -> str:
    result = subprocess.run(
        [program, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result.stdout


def test_the_wheel_holds_the_data_and_nothing_that_was_left_lying_about(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in ("gpus.toml", "models.toml", "questions.toml", "approaches.toml", "recipes/demo.toml"):
        assert f"engine/_data/profiles/{part}" in names
    for part in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert f"engine/_data/demo/model/{part}" in names
    for part in (
        "finetune/train.jsonl",
        "finetune/heldout.jsonl",
        "finetune/base_text.jsonl",
        "long/train.jsonl",
        "prompts.json",
        "tasks/demo.yaml",
        "tasks/demo_arithmetic.yaml",
        "tasks/_skill.yaml",
        "tasks/questions/recall.jsonl",
        READS_QUESTIONS,
    ):
        assert f"engine/_data/demo/{part}" in names
    assert any(name.startswith("scaler_tui/styles/") and name.endswith(".tcss") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"engine", "scaler_tui"}
    for name in names:
        assert "__pycache__" not in name
        assert "checkpoint-" not in name
        script = name.endswith((".py", ".pt", ".bin", ".log")) and not name.endswith(READS_QUESTIONS)
        assert not (name.startswith("engine/_data/demo/") and script)
    assert wheel.stat().st_size < 12 * 2**20


def test_the_wheel_holds_every_module_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "engine", "scaler_tui"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert tracked
    assert not set(tracked) - names


def test_the_program_is_the_wheels_own(installed: Path, tmp_path: Path) -> None:
    code = "import engine, scaler_tui, engine.resources as r; print(engine.__file__, scaler_tui.__file__, r.demo_dir())"
    for place in call(installed / "python", "-c", code, cwd=tmp_path).split():
        assert Path(place).is_relative_to(installed.parent)


def test_commands_work_from_another_folder(installed: Path, tmp_path: Path) -> None:
    program = installed / "scaler-wizard"
    assert call(program, "--version", cwd=tmp_path).startswith("scaler-wizard ")
    demo = json.loads(call(program, "inspect", "demo", "--json", cwd=tmp_path))
    assert demo["layers"] >= 8
    assert Path(demo["source"]).is_relative_to(installed.parent)
    matrix = json.loads(call(program, "matrix", "demo", "--json", cwd=tmp_path))
    assert len(matrix["approaches"]) == 9
    doctor = json.loads(call(program, "doctor", "--json", cwd=tmp_path))
    assert doctor["libraries"]["textual"]
    report = json.loads(call(program, "data", "check", "demo", "--json", cwd=tmp_path))
    assert report["train"]["trained_tokens"] > 0


def test_the_wizard_and_the_worker_can_be_loaded(installed: Path, tmp_path: Path) -> None:
    code = (
        "import asyncio\n"
        "from scaler_tui.terminal import RenderPolicy\n"
        "from scaler_tui.app import ScalerApp, Start\n"
        "async def paint():\n"
        "    async with ScalerApp(RenderPolicy(), Start(demo=True)).run_test(size=(80, 24)) as pilot:\n"
        "        await pilot.pause()\n"
        "asyncio.run(paint())\n"
        "import engine.train.worker, engine.train.merge\n"
    )
    call(installed / "python", "-c", code, cwd=tmp_path)


def test_a_run_started_from_the_wheel_finishes(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_WORKER", f"env PYTHONPATH={ROOT} {worker_command()}")
    program = installed / "scaler-wizard"
    call(program, "plan", "demo", "-o", "spec.toml", cwd=tmp_path)
    started = json.loads(call(program, "start", "spec.toml", "--json", cwd=tmp_path))

    def state() -> str:
        (run,) = json.loads(call(program, "runs", "--json", cwd=tmp_path))
        assert run["id"] == started["id"]
        return str(run["state"])

    wait_for(lambda: state() == "finished", "the run finishes")
