"""The lines of the screen about adapters: sliders, settings, scores beside each other, what a sweep found.

Owns drawing. Must not choose or measure: `scaler_tui.mixing` holds both.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.jobs.mix_lines import SweepReport, Tried
from engine.units import format_bytes, format_duration
from scaler_tui.glyphs import Glyphs
from scaler_tui.mixing import HIGHEST, LOWEST, SETTINGS, Listed, Mixing
from scaler_tui.spec_results_text import METHODS
from scaler_tui.widgets.context_words import QUIET, wrapped_line
from scaler_tui.widgets.status_line import clip, clip_middle, toned

LONGEST_NAME, SHORTEST_NAME = 26, 10
SLIDER_CELLS, SHORTEST_SLIDER = 31, 13
WEIGHT_CELLS = 6
SCORE_CELLS = 8
LABEL_CELLS = 11
LABELS = {
    "weight": "Weight of {}:",
    "density": "Share of every update that is kept:",
    "rank": "Rank of the result:",
    "add": "Add an adapter:",
    "data": "Score on these rows:",
    "mix": "Write the mixed adapter to:",
    "merge": "Write the merged model to:",
    "spec": "Write the job to:",
}
"""Above the field: what is typed."""
PLACEHOLDERS = {
    "weight": "its weight, such as 0.7 or -0.5; Enter takes, Esc leaves",
    "density": "share that is kept, above 0 and up to 1; Enter takes, Esc leaves",
    "rank": "rank of the result, 0 for what is exact; Enter takes, Esc leaves",
    "add": "an adapter's folder, or a run's id; Enter adds, Esc leaves",
    "data": "rows to score on, or demo; empty: those a run held out; Enter takes, Esc leaves",
    "mix": "a new folder for the mixed adapter; Enter writes it, Esc leaves",
    "merge": "a new folder for the merged model; Enter writes it, Esc leaves",
    "spec": "a new file for the job; Enter writes it, Esc leaves",
}


def adapter_line(mixing: Mixing, one: Listed, width: int, signs: Glyphs, *, pointed: bool) -> Content:
    """In or out, its name, its slider, its weight, and what it is worth alone."""
    unicode = signs.arrow == "→"
    inside = one.folder in mixing.weights
    why = "" if inside else one.why_not_with(mixing.base)
    slider, names = _widths(width)
    others = [other.name for other in mixing.listed]
    mark = signs.on if inside else signs.no if why else signs.off
    head = f"{signs.pointer if pointed else ' '} {mark} {shown_name(one.name, others, names, unicode=unicode):<{names}}"
    tone = "reverse bold" if pointed else "bold" if inside else QUIET
    if not inside:
        said = why or f"{one.words}, {format_bytes(one.size_bytes)}"
        return Content.assemble((head, tone), "  ", toned(clip(said, width - len(head) - 2, unicode=unicode), "quiet"))
    weight = mixing.weights[one.folder]
    loss = mixing.score_alone(one.folder)
    alone = "" if loss is None else f"alone {loss:.4f}"
    drawn = slider_text(weight, slider, unicode=unicode)
    return Content.assemble(
        (head, tone), "  ", toned(drawn, "busy"), toned(f" {weight:>{WEIGHT_CELLS}g}", "strong"), "  ",
        toned(alone, "quiet"),
    )  # fmt: skip


def shown_name(name: str, others: Sequence[str], cells: int, *, unicode: bool) -> str:
    """In so many cells; where others would look the same, without the beginning that they share."""
    shown = clip_middle(name, cells, unicode=unicode)
    alike = [other for other in others if clip_middle(other, cells, unicode=unicode) == shown]
    if len(set(alike)) < 2:
        return shown
    shared = next((n for n, letters in enumerate(zip(*alike, strict=False)) if len(set(letters)) > 1), 0)
    return clip(("…" if unicode else "~") + name[shared:], cells, unicode=unicode)


def _widths(width: int) -> tuple[int, int]:
    """(cells of a slider, of a name)."""
    room = width - 4 - 2 - WEIGHT_CELLS - 1 - 2 - SCORE_CELLS - 6
    names = min(max(room - SLIDER_CELLS, SHORTEST_NAME), LONGEST_NAME)
    return min(max(room - names, SHORTEST_SLIDER), SLIDER_CELLS), names


def slider_text(weight: float, cells: int, *, unicode: bool) -> str:
    """A line from LOWEST to HIGHEST with 0 marked and a knob at the weight; beyond an end an arrow stands there."""
    line, zero, one, knob = ("─", "┼", "┴", "●") if unicode else ("-", "+", "'", "#")
    low, high = ("◂", "▸") if unicode else ("<", ">")

    def place(value: float) -> int:
        share = (value - LOWEST) / (HIGHEST - LOWEST)
        return round(min(max(share, 0.0), 1.0) * (cells - 1))

    drawn = [line] * cells
    drawn[place(0.0)], drawn[place(1.0)] = zero, one
    drawn[place(weight)] = low if weight < LOWEST else high if weight > HIGHEST else knob
    return "".join(drawn)


def setting_line(mixing: Mixing, setting: str, width: int, signs: Glyphs, *, pointed: bool) -> Content:
    """Method, density, signs or rank, with what it means."""
    mix = mixing.mix
    value, said = {
        "method": (mix.method.value, METHODS[mix.method]),
        "density": (f"{mix.density:g}", "share of every update that is kept"),
        "signs": (mix.signs.value, "how the sign of an entry is elected"),
        "rank": (
            str(mix.rank or "exact"),
            "of the result" if mix.rank else "as large as it takes",
        ),
    }[setting]
    idle = mixing.why_idle(setting)
    head = f"{signs.pointer if pointed else ' '} {setting:<{LABEL_CELLS - 2}}"
    shown = f" {value} " if not idle else f" {signs.dash} "
    room = width - len(head) - len(shown) - 1
    tone = "reverse bold" if pointed else "bold" if not idle else QUIET
    return Content.assemble(
        (head, "bold" if pointed else QUIET),
        (shown, tone),
        " ",
        (clip(idle or said, room, unicode=signs.arrow == "→"), QUIET),
    )


def settings_lines(mixing: Mixing, pointed: str, width: int, signs: Glyphs) -> list[Content]:
    """All of them."""
    return [setting_line(mixing, name, width, signs, pointed=name == pointed) for name in SETTINGS]


def score_content(mixing: Mixing, width: int, signs: Glyphs, *, waiting: str) -> Content:
    """The mix beside the base and the best single adapter; which is better in a word."""
    score, base, best = mixing.score(), mixing.base_score(), mixing.best_alone()
    if not mixing.weights:
        return toned("Space puts the pointed adapter in; then the mix is scored as its weights change.", "quiet")
    if mixing.refused:
        return toned(f"{signs.no} {mixing.refused}", "bad")
    shown = "measuring" if score is None else f"{score:.4f}"
    parts = [Content.assemble(toned("mix ", "quiet"), toned(shown, "strong" if score is not None else "busy"))]
    if base is not None:
        parts.append(Content.assemble(toned("base ", "quiet"), f"{base:.4f}"))
    if best is not None and len(mixing.weights) > 1:
        named = clip_middle(best[0], 20, unicode=signs.arrow == "→")
        parts.append(Content.assemble(toned(f"best alone {named} ", "quiet"), f"{best[1]:.4f}"))
    if waiting and score is None and base is None:
        parts = [toned(waiting, "busy")]
    line = Content("   ").join(parts)
    verdict = score_verdict(mixing, signs)
    if not verdict.plain:
        return line
    fits = line.cell_length + verdict.cell_length + 3 <= width
    return Content.assemble(line, "   " if fits else "\n", verdict)


def score_verdict(mixing: Mixing, signs: Glyphs) -> Content:
    """ "better than each alone"; "" while figures are missing."""
    score, base, best = mixing.score(), mixing.base_score(), mixing.best_alone()
    if score is None or base is None or best is None:
        return Content("")
    if mixing.fitted:
        return toned("fitted to these rows: no verdict", "quiet")
    if len(mixing.weights) > 1 and best[1] < base:
        if score < best[1]:
            return toned(f"{signs.ok} better than each alone", "good")
        return toned(f"{signs.warn} {best[0]} alone is better", "warn") if score > best[1] else Content("")
    if score < base:
        return toned(f"{signs.ok} better than the base", "good")
    return toned(f"{signs.warn} the base alone is better", "warn") if score > base else Content("")


def tried_content(tried: Tried | None, names: Sequence[str], width: int) -> Content:
    """How far a sweep is."""
    if tried is None:
        return toned("Sweep: loading base and adapters ...", "busy")
    left = f", {format_duration(tried.eta_seconds)} left" if tried.eta_seconds is not None else ""
    now = (
        f"Sweep: {tried.number} of at most {tried.total} sets of weights{left}; best so far {tried.best_loss:.4f} with "
    )
    return wrapped_line(now + weights_text(names, tried.best) + ".", width, tone="$text-accent")


def swept_content(report: SweepReport, width: int, signs: Glyphs, asked: int) -> list[Content]:
    """What a sweep of at most `asked` sets found, and what it is worth on rows that were not searched on."""
    from scaler_tui.commands.adapters_sweep import verdict

    tone = "$text-success" if report.helps else "$text-warning"
    mark = signs.ok if report.helps else signs.warn
    found = f"{mark} Sweep: {weights_text(report.adapters, report.best.weights)} is the best of {report.tries} sets"
    found += f", at most {asked}: no step around it was better." if report.tries < asked else "."
    told = verdict(report) + ("" if report.helps else " The sliders are left as they were.")
    head = [Content.styled(wrapped_line(found, width).plain, f"bold {tone}"), wrapped_line(told, width)]
    return [*head, *_swept_table(report, width, signs)]


def _swept_table(report: SweepReport, width: int, signs: Glyphs) -> list[Content]:
    """Base, each alone, all equally and the best, on the rows that were searched on and on others."""
    names = report.adapters
    rows = [("base", report.base), *zip(names, report.alone, strict=True)]
    rows += [("all equally", report.equal)] if report.equal is not None else []
    rows.append(("best found", report.best))
    cells = min(max(len(name) for name, _ in rows), max(width - 26, 12))
    lines = [toned(f"{'':<{cells}}  {'searched on':>11}  {'others':>9}", "quiet")]
    for name, one in rows:
        check = signs.dash if one.check_loss is None else f"{one.check_loss:.4f}"
        figures = f"  {one.loss:>11.4f}  {check:>9}"
        shown = f"{clip_middle(name, cells, unicode=signs.arrow == '→'):<{cells}}"
        lines.append(Content.assemble(shown, toned(figures, "strong" if one is report.best else "")))
    return lines


def weights_text(names: Sequence[str], weights: Sequence[float]) -> str:
    """ "0.7 x facts, 0.35 x tone"."""
    return ", ".join(f"{w:g} x {name}" for name, w in zip(names, weights, strict=False) if w) or "the base alone"
