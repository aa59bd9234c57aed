"""What the screens about a longer window say: fields, the values of one, who reads the result.

Owns wrapping and tones. Must not choose, plan or measure: `window_choices` and `window_facts` bring the words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from textual.content import Content

from engine.errors import EngineError
from engine.jobs.spec_context import AUTO
from scaler_tui.glyphs import Glyphs
from scaler_tui.widgets.status_line import TONES, clip, toned
from scaler_tui.window_choices import Option
from scaler_tui.window_facts import WindowFacts, reader_lines

QUIET = "$foreground 75%"
LABEL_CELLS = 11
ARROW = "→"
"""Of the Unicode glyphs."""
VERDICT_TONES = {"exact": "good", "approximate": "warn", "lost": "bad", "depends": "warn"}
CONSUMER_CELLS = 18


def wrapped_line(text: str, width: int, indent: int = 0, tone: str = "") -> Content:
    """A paragraph."""
    lines = textwrap.wrap(text, max(width, 20), subsequent_indent=" " * indent, break_on_hyphens=False)
    return Content.styled("\n".join(lines), tone) if tone else Content("\n".join(lines))


def field_lines(fields: Sequence[tuple[str, Option]], pointer: int, width: int, signs: Glyphs) -> Content:
    """One line per field: name, value, what is known of it in figures."""
    lines = []
    for index, (name, option) in enumerate(fields):
        pointed = index == pointer
        mark = signs.pointer if pointed else " "
        label = f"{mark} {name:<{LABEL_CELLS - 2}}"
        value = f" {option.title} "
        said = option.figures or option.brief or option.words
        room = width - LABEL_CELLS - len(value) - 2
        if option.figures and room < len(said):
            said = ""  # a figure is never cut
        figures = clip(said, room, unicode=signs.arrow == ARROW) if room > 8 else ""
        lines.append(
            Content.assemble(
                (label, "bold" if pointed else QUIET),
                Content.styled(value, "reverse bold" if pointed else "bold"),
                "  ",
                toned(figures, option.tone) if option.figures else Content.styled(figures, QUIET),
            )
        )
    return Content("\n").join(lines)


def option_lines(options: Sequence[Option], value: str, width: int, signs: Glyphs) -> Content:
    """A line per value with what is known of it, or why it cannot be chosen; below, the words of the chosen one."""
    if not options:
        return Content("Planning ...")
    names = max(len(option.title) for option in options) + 1
    lines: list[Content] = []
    for number, option in enumerate(options, 1):
        chosen = option.value == value
        digit = str(number) if number < 10 else " "
        head = f"{digit} {signs.on if chosen else signs.off} {option.title:<{names}}"
        room = width - len(head) - 1
        if option.why_not:
            text, tone = f"{signs.no} {option.why_not}", QUIET
        elif option.figures and len(option.figures) <= room:
            text, tone = option.figures, TONES.get(option.tone, "")
        else:
            text, tone = option.brief or option.words, QUIET
        shown = clip(text, room, unicode=signs.arrow == ARROW)
        lines.append(Content.assemble((head, "bold" if chosen else ""), " ", Content.styled(shown, tone or "none")))
    chosen_one = next((option for option in options if option.value == value), None)
    if chosen_one is not None:
        words = "; ".join(text for text in (chosen_one.words, chosen_one.figures) if text)
        lines += [Content(""), wrapped_line(f"{chosen_one.title}: {words}.", width)]
    return Content("\n").join(lines)


def readers(facts: WindowFacts, method: str, width: int, signs: Glyphs) -> Content:
    """Which programs read the result, before anything is spent."""
    lines = reader_lines(facts, method)
    if not lines:
        return Content("")
    heading = "Who reads it" + (f", made with {method}" if method != AUTO else "")
    parts: list[Content] = [Content.styled(heading, "bold")]
    marks = {"exact": signs.ok, "approximate": signs.warn, "lost": signs.no, "depends": signs.warn}
    for line in lines:
        tone = VERDICT_TONES.get(line.verdict, "")
        words = line.words + (" It says nothing about it: the loss is silent." if line.silent else "")
        indent = CONSUMER_CELLS + 2
        first, *rest = textwrap.wrap(f"{line.verdict}: {words}", max(width - indent, 20), break_on_hyphens=False)
        body = [Content.assemble(toned(first[: len(line.verdict)], tone), first[len(line.verdict) :])]
        body += [Content(" " * indent + text) for text in rest]
        mark = toned(f"{marks.get(line.verdict, ' ')} ", tone)
        parts.append(Content.assemble(f"{line.program:<{CONSUMER_CELLS}}", mark, Content("\n").join(body)))
    return Content("\n").join(parts)


def notes(facts: WindowFacts, method: str, width: int, signs: Glyphs) -> Content:
    """Lints and what was assumed about the chosen method."""
    chosen = facts.of(method)
    if chosen is None:
        return Content("")
    return Content("\n").join(wrapped_line(f"{signs.warn} {note}", width, 2) for note in chosen.notes)


def refusal(error: EngineError, signs: Glyphs) -> Content:
    """What, cause, next step."""
    parts: list[str | tuple[str, str]] = [(f"{signs.no} {error.what}\n", "bold $text-error")]
    parts += [f"{text}\n" for text in (error.cause, error.next_step) if text]
    return Content.assemble(*parts)
