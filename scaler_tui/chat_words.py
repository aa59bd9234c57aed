"""A chat in words and tones: a side's heading, an answer, the very text that was sent.

Owns the look. Must not know widgets or processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.content import Content

from engine.jobs.chat_lines import Sampling
from scaler_tui.chat_state import Answer, ChatState, Phase, SideState, harmless
from scaler_tui.widgets.status_line import clip, toned


def title(name: str, sampling: Sampling, width: int, *, unicode: bool) -> Content:
    """The first line: what is talked to, and how it answers."""
    words = sampling.words.partition(", at most")[0]
    name = clip(name, max(width - len(words) - 10, 8), unicode=unicode)
    gap = " " * max(width - len(name) - len(words) - 9, 1)
    return Content.assemble(" ", toned("Chat", "strong"), f"  {name}", gap, toned(words, "quiet"), " ")


def names(state: ChatState, shown: Sequence[int]) -> Content:
    """Every side, those that are shown told apart."""
    found = [
        toned(f"{number + 1} {side.order.name}", "strong" if number in shown else "quiet")
        for number, side in enumerate(state.sides)
    ]
    return Content.assemble(toned("Tab  ", "quiet"), Content("   ").join(found))


def heading(side: SideState, width: int, *, unicode: bool) -> str:
    """Its name and how it is held."""
    held = f" ({side.facts.weights})" if side.facts is not None else ""
    name = side.order.name
    room = width - 4
    return clip(name + held, room, unicode=unicode) if len(name) + len(held) > room else name + held


def beginning(side: SideState) -> Content:
    """What there is to know before anything was asked."""
    if side.problem is not None:
        told = [toned("Left out: ", "bad"), Content(side.problem.what)]
        lines = [Content.assemble(*told)]
        lines += [Content(text) for text in (side.problem.cause,) if text]
        lines += [Content.assemble(toned("Next: ", "strong"), side.problem.next_step)] if side.problem.next_step else []
        return Content("\n").join(lines)
    lines = [toned(f"{note[:1].upper()}{note[1:]}.", "quiet") for note in side.notes]
    if side.facts is not None and side.facts.window:
        lines.append(toned(f"Window {side.facts.window:,} tokens.", "quiet"))
    return Content("\n").join(lines)


def answer_content(answer: Answer, *, unicode: bool) -> Content:
    """Question, answer, figures."""
    sign = "›" if unicode else ">"
    parts: list[Content] = [Content.assemble(toned(f"{sign} ", "busy"), toned(harmless(answer.prompt), "strong"))]
    if answer.problem is not None:
        parts.append(toned(f"{answer.problem.what} {answer.problem.cause}".strip(), "bad"))
        if answer.problem.next_step:
            parts.append(Content(f"Next: {answer.problem.next_step}"))
    elif answer.text.strip():
        parts.append(Content(harmless(answer.text.strip())))
    elif answer.ended:
        parts.append(toned("(empty answer)", "quiet"))
    else:
        parts.append(toned("..." if not answer.sent else f"reading {answer.prompt_tokens:,} tokens ...", "quiet"))
    if answer.words:
        parts.append(toned(answer.words, "warn" if answer.ended in ("length", "window", "stopped") else "quiet"))
    return Content("\n").join(parts)


def sent_content(side: SideState, *, unicode: bool) -> Content:
    """The text that a side was given last, line ends and special tokens visible."""
    if side.facts is None:
        return Content("")
    origin = side.facts.template_origin
    head = f"{side.sent_tokens:,} tokens sent. Template: {origin}" if side.sent_tokens else f"Template: {origin}"
    stops = ", ".join(side.facts.stop_tokens) or "none"
    lines = [toned(head, "strong"), toned(f"An answer ends at {stops}.", "quiet"), Content("")]
    if not side.sent:
        lines.append(toned("Nothing was sent yet. The template itself:", "quiet"))
        lines.append(Content(harmless(side.facts.template)))
        return Content("\n").join(lines)
    return Content.assemble(Content("\n").join(lines), "\n", *_marked(side, "↵" if unicode else "\\n"))


def _marked(side: SideState, line_end: str) -> list[Content]:
    tokens = sorted(side.special, key=len, reverse=True)
    pieces = re.split("(" + "|".join([*map(re.escape, tokens), "\n"]) + ")", side.sent)
    found: list[Content] = []
    for piece in pieces:
        if piece == "\n":
            found.append(Content.assemble(toned(line_end, "quiet"), "\n"))
        elif piece:
            found.append(toned(piece, "busy") if piece in side.special else Content(harmless(piece)))
    return found


def status(state: ChatState | None, saved: str, said: str) -> Content:
    """The line above the field: what is going on, else what was said last, else where things are."""
    if state is None:
        return toned(f"Looking for what to talk to ... {said}".rstrip(), "busy")
    if state.phase is Phase.LOADING:
        told = said or "You can type already."
        return toned(f"{state.loading[:1].upper()}{state.loading[1:]} ... {told}", "busy")
    if state.phase is Phase.OVER:
        error = state.error
        if error is None:
            return toned("The chat is over.", "quiet")
        return toned(" ".join(text for text in (error.what, error.cause, error.next_step) if text), "bad")
    if state.phase is Phase.ANSWERING:
        for number in state.live:
            answer = state.sides[number].answers[-1] if state.sides[number].answers else None
            if answer is not None and not answer.ended:
                count = f", {answer.tokens} tokens" if answer.tokens else ""
                return toned(f"{state.sides[number].order.name} answers{count}", "busy")
    if said:
        return toned(said, "warn")
    return toned(saved or f"On {state.device}, loaded in {state.load_seconds:.0f} s.", "quiet")
