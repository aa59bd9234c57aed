"""The three questions of growth as labs on the demo model: against LoRA, against random weights, for what money.

Run with `python -m bench.lab [NAMES ...] [--out FILE]`: every lab is `scaler-wizard lab NAME` in a home of its own, so
that an interrupted one goes on. Its runs are kept in FILE, one line each. `--report` turns FILE into the tables of
TRAINING.md, the picture of each lab and `profiles/measured/demo-labs.toml`, which the matrix of the demo cites. Half an
hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.lab.figures import written
from engine.lab.folder import Record, folder_of
from engine.lab.lab_file import Lab
from engine.lab.ready import find_lab, ready_labs
from engine.lab.report import Report, report_of
from engine.lab.report_html import curves_plot
from engine.lab.report_markdown import answers, arms_table, figures_table
from engine.lab.results import RunResult, collect
from engine.lab.sizing import ArmSize, Sizes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "lab_results.jsonl"
PAGE = ROOT / "TRAINING.md"
PROFILE = ROOT / "profiles" / "measured" / "demo-labs.toml"
MATRIX_LAB = "demo-lora-baseline"
"""Whose figures the matrix cites."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one lab."""

    lab: str
    created: float
    machine: str
    version: str
    how: str
    size: ArmSize
    run: RunResult


@dataclass(frozen=True, slots=True)
class Section:
    """What the document says of one lab."""

    name: str
    text: str

    @property
    def marks(self) -> tuple[str, str]:
        return f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────
def measure(names: Iterable[str], home: Path, out: Path) -> bool:
    """Carry the labs out; returns whether all of them are complete."""
    complete = True
    for name in names:
        environment = os.environ | {"SCALER_WIZARD_HOME": str(home)}
        done = subprocess.run([sys.executable, "-m", "scaler_tui", "lab", name], cwd=ROOT, env=environment, check=False)
        complete &= done.returncode == 0
        keep(find_lab(name), home, out)
    return complete


def keep(lab: Lab, home: Path, out: Path) -> None:
    """The lab's runs take the place of those that `out` has of it."""
    os.environ["SCALER_WIZARD_HOME"] = str(home)
    folder = folder_of(lab)
    record = folder.record()
    if record is None:
        return
    lines = [line for line in read_lines(out) if line.lab != lab.file.name]
    lines += [
        Line(
            lab=lab.file.name,
            created=record.created,
            machine=record.machine,
            version=record.program_version,
            how=record.sizes.how,
            size=record.sizes.of(run.arm),
            run=msgspec.structs.replace(run, run_id=""),
        )
        for run in collect(lab, folder, record)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_lines(path: Path) -> list[Line]:
    """What was measured so far."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines() if line.strip()]


# ── reporting ─────────────────────────────────────────────────────────────────────────────────────────────────────
def reports(path: Path) -> Iterator[Report]:
    """Of every ready lab that has lines, in the order of their names."""
    lines = read_lines(path)
    for lab in ready_labs():
        own = [line for line in lines if line.lab == lab.file.name]
        if not own:
            continue
        by_arm = {line.run.arm: line.size for line in own}
        sizes = Sizes(tuple(by_arm[arm.name] for arm in lab.arms), own[0].how)
        record = Record(created=own[0].created, machine=own[0].machine, program_version=own[0].version, sizes=sizes)
        yield report_of(lab, record, tuple(line.run for line in own))


def sections(path: Path) -> list[Section]:
    """The text of every lab in TRAINING.md."""
    return [Section(report.name, section_text(report)) for report in reports(path)]


def section_text(report: Report) -> str:
    """Question, answers, figures and what the arms are."""
    unfinished = "" if report.complete else f" {report.finished} of {report.total} runs finished."
    seeds = f"{len(report.seeds)} seeds, {report.machine}, {report.day}.{unfinished}"
    return "\n\n".join(
        [
            f"*{report.question}* {seeds} {report.how}",
            answers(report),
            f"![Held-out loss]({picture_of(report).relative_to(ROOT)})",
            figures_table(report),
            arms_table(report.arms),
        ]
    )


def picture_of(report: Report) -> Path:
    """Where the curves of a lab lie."""
    return ROOT / "assets" / f"{report.name}.svg"


def picture(report: Report) -> str:
    """The curves with their legend, as a file of its own."""
    from engine.jobs.card_plots import HEIGHT, WIDTH
    from engine.lab.report_html import COLOURS

    order = [arm.name for arm in report.arms]
    inside = curves_plot([curve for curve in report.curves if len(curve.spent) > 1], order, report.spent_in)
    body = inside.partition(">")[2].removesuffix("</svg>")
    names = "".join(
        f'<text x="{60 + 200 * index}" y="{HEIGHT + 18}" fill="{COLOURS[index]}" font-size="13" '
        f'font-family="sans-serif">{name}</text>'
        for index, name in enumerate(order)
    )
    style = "".join(f".arm{index}{{stroke:{COLOURS[index]}}}" for index in range(len(order)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 30}" width="{WIDTH}">'
        "<style>.grid{stroke:#ddd}.tick{fill:#666;font:12px sans-serif}.arm{fill:none;stroke-width:2.2}"
        f".seed{{opacity:.25;stroke-width:1}}{style}</style>"
        f'<rect width="{WIDTH}" height="{HEIGHT + 30}" fill="white"/>{body}{names}</svg>\n'
    )


def profile_text(path: Path) -> str:
    """`profiles/measured/demo-labs.toml`: what the matrix says of approaches that an arm is an example of."""
    lines = [
        "# What approaches did on the demo model, in one lab each; written by `python -m bench lab --report`.",
        "# The matrix of the demo shows these words with their origin.",
        "version = 1",
    ]
    for report in reports(path):
        if report.name != MATRIX_LAB:
            continue
        for section in find_lab(report.name).file.arms:
            if section.approach:
                lines += [
                    "",
                    "[[result]]",
                    f'approach = "{section.approach}"',
                    f'words = "{matrix_words(report, section.name)}"',
                ]
                lines += [f'lab = "{report.name}"', f'day = "{report.day}"']
    return "\n".join(lines) + "\n"


def matrix_words(report: Report, arm: str) -> str:
    """ "At 4.00·10¹¹ FLOPs: exact answers 100.0 % ± 0.0, ..."."""
    from engine.lab.report_markdown import figure_words

    parts = []
    for figure, name in (
        ("exact_match", "exact answers"),
        ("task_loss", "task loss"),
        ("base_perplexity", "perplexity on old text"),
    ):
        verdict = next(one for one in report.verdicts if one.figure == figure)
        found = next(one for one in verdict.arms if one.arm == arm)
        parts.append(f"{name} {figure_words(verdict, found)}")
    flops = next(row.flops for row in report.arms if row.name == arm)
    first = next(run for run in report.runs if run.arm == arm and run.finished)
    old = written(first.before["base_perplexity"], "base_perplexity")
    return f"After {written(flops, 'flops')} FLOPs {', '.join(parts)} (before: {old})"


def write_report(path: Path) -> None:
    """Sections between their marks, pictures, and the profile."""
    text = PAGE.read_text(encoding="utf-8")
    for report in reports(path):
        picture_of(report).write_text(picture(report), encoding="utf-8")
    for section in sections(path):
        begin, end = section.marks
        head, rest = text.split(begin, 1)
        _, tail = rest.split(end, 1)
        text = f"{head}{begin}\n{section.text}\n{end}{tail}"
    PAGE.write_text(text, encoding="utf-8")
    PROFILE.write_text(profile_text(path), encoding="utf-8")


def main() -> int:
    """Run what is missing, or report. Returns 1 when a lab is not complete."""
    parser = argparse.ArgumentParser(prog="python -m bench lab")
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "lab.jsonl")
    parser.add_argument("--home", type=Path, default=ROOT / ".bench" / "lab-home")
    parser.add_argument("--keep", action="store_true", help="only take up the runs that are there")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(sys.argv[1:] if Path(sys.argv[0]).name == "lab.py" else [])
    names = options.names or [lab.file.name for lab in ready_labs()]
    if options.report:
        write_report(options.out)
        return 0
    if options.keep:
        for name in names:
            keep(find_lab(name), options.home, options.out)
        return 0
    complete = measure(names, options.home, options.out)
    for report in reports(options.out):
        print(f"{report.title}\n{answers(report)}\n", flush=True)
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
