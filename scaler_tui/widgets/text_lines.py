"""The sources of large text as a table with share bars, and what was found in the pointed one.

Owns alignment and tones. Must not read or count: the `corpus` command did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.content import Content

from engine.jobs.spec_stream import SourceSection
from engine.units import format_bytes, format_count
from scaler_tui.glyphs import Glyphs
from scaler_tui.text_plan import Checked, TextPlan
from scaler_tui.widgets.evaluation_words import wrapped
from scaler_tui.widgets.status_line import clip, toned

if TYPE_CHECKING:
    from engine.corpus.report import SourceReport

QUIET = "$foreground 75%"
LONGEST_NAME, SHORTEST_BAR, LONGEST_BAR = 20, 6, 40
FIGURE_CELLS = 54
"""Of a row without name and bar, with what was found."""
EXAMPLES = 5
"""Faults that are named one by one."""
MOST_BAD_SHARE = 0.05
"""As [stream] bad_share is when left out."""
MANY_PASSES = 4.0
"""More passes over the same text than this are worth a remark (Muennighoff et al., arXiv 2305.16264)."""


def source_table(plan: TextPlan, pointer: int, width: int, signs: Glyphs) -> Content:
    """A row per source: weight, share as a bar, tokens, what the check says."""
    sources = plan.sources
    if not sources:
        return Content.styled("  No source yet. a adds one: a file, a folder, a pattern, or hub:owner/name.", QUIET)
    names = min(max(len(source.name) for source in sources), LONGEST_NAME)
    bar = min(max(width - names - FIGURE_CELLS, 0), LONGEST_BAR)
    bar = bar if bar >= SHORTEST_BAR else 0
    head = f"  {'source':<{names}}  weight  {'share':<{bar + (1 if bar else 0) + 5}}  {'tokens':>7}  found"
    lines = [Content.styled(head, QUIET)]
    for place, source in enumerate(sources):
        pointed = place == pointer
        share = plan.share(place)
        drawn = f"{_bar(share, bar, signs)} " if bar else ""
        found, tone = found_words(plan.known(source), read=source not in plan.unread())
        room = max(width - names - bar - (1 if bar else 0) - 30, 8)
        lines.append(
            Content.assemble(
                (f"{signs.pointer if pointed else ' '} {clip(source.name, names):<{names}}", "bold" if pointed else ""),
                f"  {source.weight:>6g}  ", toned(drawn, "busy"), f"{share * 100:>3.0f} %  ",
                f"{token_text(plan, source):>7}  ",
                toned(clip(found, room, unicode=signs.arrow == "→"), tone),
            )
        )  # fmt: skip
    return Content("\n").join(lines)


def token_text(plan: TextPlan, source: SourceSection) -> str:
    """ "12.4M"; "20.0M+" where there is more of it."""
    checked, tokens = plan.known(source), plan.tokens_of(source)
    more = checked is not None and checked.report is not None and not checked.report.exhausted
    return f"{format_count(tokens)}{'+' if more else ''}" if tokens else "-"


def _bar(share: float, cells: int, signs: Glyphs) -> str:
    full = round(share * cells)
    full = max(full, 1) if share > 0 else 0
    return signs.bar_full * full + signs.bar_empty * (cells - full)


def found_words(checked: Checked | None, *, read: bool) -> tuple[str, str]:
    """(words, tone) for the last column."""
    if checked is None:
        return ("reading ...", "busy") if read else ("not read yet", "quiet")
    if checked.problem is not None:
        return "cannot be read", "bad"
    report = checked.report
    if report is None:
        return "-", "quiet"
    if report.faults.total:
        return f"{report.faults.documents:,} documents unreadable", "warn"
    dropped = report.duplicates.documents + report.near_duplicates.documents + report.contaminated.documents
    return (f"{dropped:,} documents dropped", "") if dropped else ("all of it good", "good")


def source_words(plan: TextPlan, place: int, width: int, signs: Glyphs) -> Content:
    """Everything about one source."""
    source = plan.sources[place]
    checked = plan.known(source)
    lines: list[Content] = [Content.assemble((source.path, "bold"), (f"  text in {source.field}", QUIET))]
    if source in plan.unread():
        lines.append(Content("Not read yet."))
    elif checked is None:
        lines.append(Content("Being read: files, faults, duplicates and tokens appear here. Nothing waits for it."))
    elif checked.problem is not None:
        error = checked.problem
        lines.append(toned(f"{signs.no} {error.what}", "bad"))
        lines += [Content(text) for part in (error.cause, error.next_step) if part for text in wrapped(part, width)]
    elif checked.report is not None:
        for label, words, tone in _report_rows(plan, source, checked.report):
            first, *rest = wrapped(words, max(width - 12, 20))
            lines.append(Content.assemble((f"{label:<12}", QUIET), toned(first, tone)))
            lines += [Content(" " * 12 + text) for text in rest]
        lines += list(_fault_lines(checked.report, width, signs))
    return Content("\n").join(lines)


def _report_rows(plan: TextPlan, source: SourceSection, report: SourceReport) -> Iterator[tuple[str, str, str]]:
    files = f"{report.files:,} {'file' if report.files == 1 else 'files'}, " if report.files else ""
    more = "" if report.exhausted else "; there is more of it"
    yield "read", f"{files}{report.documents:,} documents, {format_bytes(report.text_bytes)} of text{more}", ""
    kept = f"{report.kept.documents:,} documents, {format_count(report.kept.tokens)} tokens"
    yield "kept", f"{kept} ({report.bytes_per_token:.2f} bytes a token)", "strong"
    dropped = [
        f"{count.documents:,} {what} ({format_count(count.tokens)} tokens)"
        for count, what in (
            (report.duplicates, "duplicates"),
            (report.near_duplicates, "near duplicates"),
            (report.contaminated, "that share text with what it is evaluated on"),
        )
        if count.documents
    ]
    if dropped:
        yield "dropped", ", ".join(dropped), ""
    if report.heldout.documents:
        held = f"{report.heldout.documents:,} documents, {format_count(report.heldout.tokens)} tokens"
        yield "held out", f"{held}: its own suite", ""
    tokens = plan.wanted_tokens * plan.share(plan.sources.index(source))
    if report.kept.tokens and tokens:
        passes = tokens / report.kept.tokens
        words = f"{format_count(tokens)} tokens of the run: it is read {passes:.1f} times"
        many = passes > MANY_PASSES
        yield "trained on", words + ("; beyond 4 times text teaches ever less" if many else ""), "warn" if many else ""


def _fault_lines(report: SourceReport, width: int, signs: Glyphs) -> Iterator[Content]:
    from engine.corpus.faults import WORDS

    faults = report.faults
    if not faults.total:
        return
    kinds = ", ".join(f"{number:,} {WORDS[kind]}" for kind, number in faults.counts.items())
    share = faults.documents / max(faults.documents + report.documents, 1)
    ends = f" A run ends above {MOST_BAD_SHARE:.0%} ([stream] bad_share)." if share > MOST_BAD_SHARE else ""
    yield from (toned(text, "warn") for text in wrapped(f"{signs.warn} Unreadable: {kinds}.{ends}", width))
    for fault in faults.examples[:EXAMPLES]:
        yield from (Content(f"  {text}") for text in wrapped(fault.words, width - 2))
    hidden = len(faults.examples) - EXAMPLES
    if hidden > 0:
        yield Content.styled(f"  and {hidden} more; `scaler-wizard corpus` names them", QUIET)
