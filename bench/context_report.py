"""From measured pieces to the tables, maps and expectations in CONTEXT.md.

Owns how `bench.context`'s results are read: means over seeds. Must not measure anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from bench.context_figures import Figures, average, figures_in, read_results

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "CONTEXT.md"
LENGTHS = (128, 256, 512, 1024)
WINDOW, TARGET = 256, 1024
BLOCKS = " ░▒▓█"
MAPPED = ("none", "linear", "ntk", "ntk-critical", "yarn", "llama3", "dynamic", "longrope2")


class Results:
    """The lines of a file, grouped."""

    def __init__(self, path: Path) -> None:
        self.lines = read_results(path)

    def of(self, part: str, **wanted: Any) -> list[dict[str, Any]]:
        """The lines of one part with these values."""
        return [
            line for line in self.lines
            if line["part"] == part and all(line.get(key) == value for key, value in wanted.items())
        ]  # fmt: skip

    def zero_shot(self, method: str) -> list[Figures]:
        return figures_in(self.of("zero-shot", method=method))

    def trained(self, arm: str, steps: int) -> list[Figures]:
        return figures_in(self.of("trained", arm=arm, steps=steps))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(line["method"] for line in self.of("zero-shot")))

    @property
    def steps(self) -> list[int]:
        return sorted({line["steps"] for line in self.of("trained")})

    def arms(self, steps: int) -> list[str]:
        """Those there are results for, full length first."""
        found = dict.fromkeys(line["arm"] for line in self.of("trained", steps=steps))
        return sorted(found, key=lambda arm: (", " in arm, "cut text" in arm, arm != "none", arm))


def perplexity(found: Sequence[Figures], length: int) -> float:
    """Mean over seeds."""
    return average([figures.perplexity[str(length)] for figures in found])


def needle(found: Sequence[Figures], length: int = TARGET) -> float:
    return average([figures.needle(length) for figures in found])


def short(found: Sequence[Figures]) -> float:
    return average([figures.short for figures in found])


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────
def zero_shot_table(results: Results) -> str:
    """One row per method, not trained."""
    before = short(results.zero_shot("none"))
    rows = [
        "| method | short text | perplexity at 128 | 256 | 512 | 1,024 | needles at 256 | 512 | 1,024 "
        "| nats per needle at 1,024 |",
        "| --- " * 10 + "|",
    ]
    for method in results.methods:
        found = results.zero_shot(method)
        rows.append(
            f"| `{method}` | {100 * (short(found) / before - 1):+.1f} % | "
            + " | ".join(f"{perplexity(found, length):.2f}" for length in LENGTHS)
            + " | "
            + " | ".join(f"{100 * needle(found, length):.0f} %" for length in LENGTHS[1:])
            + f" | {average([figures.needle_nll[str(TARGET)] for figures in found]):.2f} |"
        )
    chosen = results.of("choice")
    told = "; ".join(f"seed {line['seed']}: `{line['method']}`" for line in chosen)
    return "\n".join((*rows, "", f"What `--method auto` takes: {told}. {_seeds(chosen)}"))


def trained_table(results: Results, steps: int) -> str:
    """One row per arm."""
    rows = [
        "| trained | seeds | perplexity at 128 | 256 | 512 | 1,024 | needles at 512 | 1,024 | worst seed | short text "
        "| seconds | peak memory |",
        "| --- " * 12 + "|",
    ]
    for arm in results.arms(steps):
        lines = results.of("trained", arm=arm, steps=steps)
        found = figures_in(lines)
        rows.append(
            f"| {arm} | {len(found)} | "
            + " | ".join(f"{perplexity(found, length):.2f}" for length in LENGTHS)
            + f" | {100 * needle(found, 512):.0f} % | {100 * needle(found):.0f} % "
            f"| {100 * min(figures.needle(TARGET) for figures in found):.0f} % | {short(found):.2f} "
            f"| {mean(line['seconds'] for line in lines):.0f} "
            f"| {mean(line['peak_ram_bytes'] for line in lines) / 2**20:.0f} MiB |"
        )
    tokens = [line["tokens"] for line in results.of("trained", steps=steps)]
    note = f"{steps} steps; {min(tokens):,} to {max(tokens):,} tokens per arm."
    return "\n".join((*rows, "", note))


def memory_note(results: Results) -> str:
    """What PoSE saves, without the libraries' share."""
    kept = {line["sequence"]: line["kept_bytes"] for line in results.of("memory")}
    if len(kept) < 2:
        return ""
    small, large = kept[WINDOW], kept[TARGET]
    return (
        f"What one sequence keeps for its backward pass: {small / 2**20:.1f} MiB at {WINDOW} tokens (PoSE, whatever "
        f"the target), {large / 2**20:.1f} MiB at {TARGET:,}: {100 * small / large:.0f} %. Peak memory is the whole "
        "process, libraries included."
    )


def search_table(results: Results) -> str:
    """Both objectives of the seeds and of what was found, by seed."""
    rows = ["| seed | set | score | nats per needle token | perplexity of the closing tokens |", "| --- " * 5 + "|"]
    for line in results.of("search"):
        for known in sorted(line["seeds"], key=lambda entry: entry["score"]):
            rows.append(_search_row(line["seed"], f"`{known['name']}`", known["score"], known))
        name = f"**found** ({line['origin']}, evaluation {_reached(line)} of {line['evaluations']})"
        rows.append(_search_row(line["seed"], name, line["best"], line))
    return "\n".join(rows)


def _search_row(seed: int, name: str, score: float, entry: dict[str, Any]) -> str:
    return f"| {seed} | {name} | {score:.4f} | {entry['needle_nll']:.4f} | {entry['perplexity']:.3f} |"


def _reached(line: dict[str, Any]) -> int:
    """The evaluation that first had the best score."""
    return 1 + line["trajectory"].index(line["trajectory"][-1])


def _seeds(lines: Sequence[Any]) -> str:
    return f"Means over {len(lines)} seed{'s' if len(lines) != 1 else ''}."


# ── maps ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def maps(results: Results) -> str:
    """Needle grids, depth downwards and length to the right, several beside each other."""
    drawn = [(f"{method}, not trained", results.zero_shot(method)) for method in MAPPED if method in results.methods]
    steps = results.steps[0] if results.steps else 0
    for arm in ("none", "none, 256 only", "yarn", "yarn, PoSE"):
        drawn.append((f"{arm}, {steps} steps", results.trained(arm, steps)))
    blocks = [_map(title, found) for title, found in drawn if found]
    rows = []
    for start in range(0, len(blocks), 4):
        for parts in zip(*blocks[start : start + 4], strict=True):
            rows.append("   ".join(parts).rstrip())
        rows.append("")
    return "\n".join(("```", *rows[:-1], "```"))


def _map(title: str, found: Sequence[Figures]) -> list[str]:
    """One grid, every line equally wide."""
    lengths = sorted(int(length) for length in found[0].needles)
    depths = list(found[0].needles[str(lengths[0])])
    lines = [f"{title:26}", "depth " + "".join(f"{length:>6}" for length in lengths)]
    for depth in depths:
        cells = [average([figures.needles[str(length)][depth] for figures in found]) for length in lengths]
        lines.append(f"{float(depth):5.2f} " + "".join(f" {_block(cell) * 2}{100 * cell:3.0f}" for cell in cells))
    width = max(map(len, lines))
    return [f"{line:{width}}" for line in lines]


def _block(share: float) -> str:
    return BLOCKS[round(share * (len(BLOCKS) - 1))]


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Section:
    """A part of CONTEXT.md that the results decide."""

    name: str
    text: str

    @property
    def marks(self) -> tuple[str, str]:
        return f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"


def sections(path: Path) -> list[Section]:
    """Every part that there are results for."""
    from bench.context_expectations import expectations

    results = Results(path)
    trained = [trained_table(results, steps) for steps in results.steps]
    told = [
        f"| {'passed' if one.passed else '**failed**'} | {one.claim} | {one.found} |" for one in expectations(results)
    ]
    return [
        Section("zero-shot", zero_shot_table(results)),
        Section("maps", maps(results)),
        Section("trained", "\n\n".join((*trained, memory_note(results)))),
        Section("search", search_table(results)),
        Section("expectations", "\n".join(("| | expected | found |", "| --- | --- | --- |", *told))),
    ]


def replaced(page: str, parts: Iterable[Section]) -> str:
    """The page with the parts between their marks."""
    for part in parts:
        begin, end = part.marks
        head, rest = page.split(begin, 1)
        _, tail = rest.split(end, 1)
        page = f"{head}{begin}\n{part.text}\n{end}{tail}"
    return page


def write_report(path: Path) -> None:
    """Put the results into CONTEXT.md."""
    PAGE.write_text(replaced(PAGE.read_text(), sections(path)))


def print_expectations(path: Path) -> bool:
    """One line per expectation; whether all hold that are meant to."""
    from bench.context_expectations import expectations

    found = expectations(Results(path))
    for one in found:
        word = "PASS" if one.passed else "FAIL" if one.regressed else "fail"
        known = "" if one.passed or one.regressed else " (not expected on this model)"
        print(f"{word}  {one.claim}: {one.found}{known}")
    return not any(one.regressed for one in found)
