"""A larger teacher and the demo model as its student, against the same student that learns from labels alone.

Run with `python -m bench distillation`: the teacher is trained by `bench/teacher/teacher.toml` (the demo model grown to
6.7 million parameters; not shipped), then `lab.toml` runs as any lab does, in a home of its own, so that an interrupted
one goes on. Its runs are kept in FILE, one line each; `python -m bench.distillation --report` turns FILE into the table
of SHARING.md. A quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bench.lab import Line, keep, read_lines
from engine.lab.folder import Record
from engine.lab.lab_file import Lab, load_lab
from engine.lab.report import Report, report_of
from engine.lab.report_markdown import answers, arms_table, figures_table
from engine.lab.sizing import Sizes

HERE = Path(__file__).resolve().parent / "teacher"
ROOT = HERE.parents[1]
RESULTS = HERE / "results.jsonl"
PAGE = ROOT / "SHARING.md"
PLACE = "TEACHER"
MARKS = ("<!-- demo-distillation: begin -->", "<!-- demo-distillation: end -->")


def trained_teacher(home: Path) -> Path:
    """The teacher's folder; trained where it is not there yet. Raises CalledProcessError."""
    noted = home / "teacher.json"
    if not noted.exists():
        command = [sys.executable, "-m", "scaler_tui", "run", str(HERE / "teacher.toml"), "--json"]
        done = subprocess.run(command, cwd=ROOT, env=_at(home), stdout=subprocess.PIPE, text=True, check=True)
        card = json.loads(done.stdout)
        noted.write_text(json.dumps({"run": card["run_id"], "path": card["adapter"]["path"]}))
    told = json.loads(noted.read_text())
    return home / "runs" / str(told["run"]) / str(told["path"])


def lab_with(teacher: Path, home: Path) -> Lab:
    """The lab as a file in `home` that names this teacher."""
    for name in ("lab.toml", "few.jsonl"):
        text = (HERE / name).read_text(encoding="utf-8")
        (home / name).write_text(text.replace(f'"{PLACE}"', json.dumps(str(teacher))), encoding="utf-8")
    return load_lab(home / "lab.toml")


def _at(home: Path) -> dict[str, str]:
    return os.environ | {"SCALER_WIZARD_HOME": str(home)}


def report_from(path: Path) -> Report:
    """Of the runs that `path` keeps."""
    lab = load_lab(HERE / "lab.toml")
    lines: list[Line] = read_lines(path)
    by_arm = {line.run.arm: line.size for line in lines}
    sizes = Sizes(tuple(by_arm[arm.name] for arm in lab.arms), lines[0].how)
    first = lines[0]
    record = Record(created=first.created, machine=first.machine, program_version=first.version, sizes=sizes)
    return report_of(lab, record, tuple(line.run for line in lines))


def section(path: Path) -> str:
    """What SHARING.md says of them."""
    report = report_from(path)
    tables = f"{arms_table(report.arms)}\n\n{figures_table(report)}\n\n{answers(report)}"
    return f"{report.day}, {report.machine}, seeds {', '.join(str(seed) for seed in report.seeds)}:\n\n{tables}"


def write_report(path: Path) -> None:
    """The table between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(MARKS[0], 1)
    _, tail = rest.split(MARKS[1], 1)
    PAGE.write_text(f"{head}{MARKS[0]}\n{section(path)}\n{MARKS[1]}{tail}", encoding="utf-8")


def main() -> int:
    """Run what is missing, or report. Returns 1 when the lab is not complete."""
    parser = argparse.ArgumentParser(prog="python -m bench.distillation")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "distillation.jsonl")
    parser.add_argument("--home", type=Path, default=ROOT / ".bench" / "distillation-home")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(sys.argv[1:] if Path(sys.argv[0]).name == "distillation.py" else [])
    if options.report:
        write_report(options.out)
        return 0
    options.home.mkdir(parents=True, exist_ok=True)
    lab = lab_with(trained_teacher(options.home), options.home)
    command = [sys.executable, "-m", "scaler_tui", "lab", str(lab.path)]
    done = subprocess.run(command, cwd=ROOT, env=_at(options.home), check=False)
    keep(lab, options.home, options.out)
    print(answers(report_from(options.out)), flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
