"""The Modelfile of an exported model: its template in Go's language, its stop tokens, its settings.

Owns these. Must not know how GGUF files are written.

A model's Jinja template is run on marked turns; what stands around the marks is the text between turns, and a Go
template is written that puts the same text there. It is kept only if it is proven: run by `engine.export.go_template`,
as Ollama would run it, it gives the Jinja template's text byte for byte on every conversation of `_proof`. Where that
fails, the Modelfile has no TEMPLATE and Ollama uses what it recognises in the GGUF file; the reason is said.

What Ollama does, read in its sources (template/template.go, parser/parser.go, 2026-10): `.System` holds all system
messages, neighbouring turns of one role are joined, `.Messages` holds the turns, and the start token is added by the
tokenizer where the file says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from engine.data.chat_template import TemplateRefusal
from engine.data.rows import Message
from engine.data.tokenizer import ChatTokenizer
from engine.export.go_template import execute
from engine.models.config import read_json_object

LARGEST_CONTEXT = 8192
"""num_ctx takes memory at once; more than this only where the job itself was about a longer window."""
_SYSTEM, _USER, _ANSWER = "QXSZ", "QXUZ", "QXAZ"
_SAID = (
    "How far is it?",
    'Two lines,\nand "quotes" {{ braces }} \\n',
    "Straße 你好 🙂",
    "1",
    "<b>x</b> & y's",
)
"""Contents without space around them: Jinja templates may trim it, and Go's have no way to."""
_SYSTEM_SAID = "Be brief.\nAnd kind."


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """A proven template."""

    text: str
    takes_system: bool
    """Else a system message is not shown to the model: its own template has no place for it, or no fixed one."""
    conversations: int
    """On which it was proven."""


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says."""

    model: str
    """File name of the GGUF file, beside the Modelfile."""
    adapter: str = ""
    template: GoTemplate | None = None
    stops: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    licence: str = ""
    notes: tuple[str, ...] = field(default=())
    """Comments at its head."""

    def text(self) -> str:
        """The file."""
        lines = [*(f"# {' '.join(note.split())}" for note in self.notes), f"FROM ./{self.model}"]
        lines += [f"ADAPTER ./{self.adapter}"] if self.adapter else []
        lines += [f'TEMPLATE """{self.template.text}"""'] if self.template is not None else []
        lines += [f"PARAMETER stop {_quoted(stop)}" for stop in self.stops if '"""' not in stop]
        lines += [f"PARAMETER {name} {value}" for name, value in self.parameters]
        lines += [f'LICENSE """{self.licence}"""'] if self.licence and '"""' not in self.licence else []
        return "\n".join(lines) + "\n"


# ── the template ─────────────────────────────────────────────────────────────────────────────────────────────────
def go_template(tokenizer: ChatTokenizer) -> tuple[GoTemplate | None, str]:
    """The model's template for Ollama, or None and why. Whether the start token is left to the tokenizer is decided as
    the GGUF writer decides it."""
    jinja = _Jinja(tokenizer)
    try:
        turns = _between(jinja, with_system=False)
    except TemplateRefusal as refusal:
        return None, f"the model's template refuses plain turns ({refusal})"
    if turns is None:
        return None, "the model's template does not put the same text between all turns"
    try:
        system = _between(jinja, with_system=True)
    except TemplateRefusal:
        system = None
    text = _go_text(turns, system)
    if '"""' in text:
        return None, "the model's template has three quotes in a row, which a Modelfile cannot hold"
    told = _proof(with_system=system is not None)
    for conversation in told:
        try:
            expected, found = jinja.render(conversation), execute(text, ollama_values(conversation))
        except (TemplateRefusal, ValueError) as error:
            return None, f"it could not be proven ({error})"
        if expected != found:
            return None, f"a conversation of {len(conversation)} turns comes out otherwise than in the model's template"
    return GoTemplate(text, system is not None, len(told)), ""


def ollama_values(turns: Sequence[Message]) -> dict[str, Any]:
    """What Ollama hands a template: system messages joined, neighbours of one role joined."""
    joined: list[dict[str, str]] = []
    for turn in turns:
        if joined and joined[-1]["Role"] == turn.role:
            joined[-1]["Content"] += f"\n\n{turn.content}"
        else:
            joined.append({"Role": turn.role, "Content": turn.content})
    return {
        "System": "\n\n".join(turn.content for turn in turns if turn.role == "system"),
        "Messages": joined,
        "Response": "",
    }


@dataclass(frozen=True, slots=True)
class _Jinja:
    """The model's own template, without the start token that the tokenizer of the GGUF file adds by itself."""

    tokenizer: ChatTokenizer

    def render(self, turns: Sequence[Message], *, answer: bool = True) -> str:
        text = self.tokenizer.render(turns, add_generation_prompt=answer)
        start = self.tokenizer.bos_token if adds_start(self.tokenizer) else ""
        return text.removeprefix(start)


def adds_start(tokenizer: ChatTokenizer) -> bool:
    """Whether the tokenizer puts the start token before plain text; the GGUF file then says so."""
    return bool(tokenizer.start_ids) and tokenizer.start_ids == (tokenizer.bos_id,)


@dataclass(frozen=True, slots=True)
class _Turns:
    """The text around contents."""

    before: tuple[str, ...]
    """Before the first user's content; with a system message: before it, and between the two."""
    user_answer: str
    answer_user: str
    last: str
    """After the last user's content: its end and the opening of the answer."""


def _between(jinja: _Jinja, *, with_system: bool) -> _Turns | None:
    """None where texts between turns differ, or the system message is nowhere in the text."""
    marks = [_USER + "1", _ANSWER + "1", _USER + "2", _ANSWER + "2", _USER + "3"]
    turns = [Message("user" if mark.startswith(_USER) else "assistant", mark) for mark in marks]
    if with_system:
        marks, turns = [_SYSTEM, *marks], [Message("system", _SYSTEM), *turns]
    text, parts = jinja.render(turns), []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(before)
    parts.append(text)
    first = len(parts) - len(marks) + (1 if with_system else 0)
    between = parts[first:-1]
    if between[0] != between[2] or between[1] != between[3]:
        return None
    return _Turns(tuple(parts[:first]), between[0], between[1], parts[-1])


def _go_text(turns: _Turns, system: _Turns | None) -> str:
    plain = _literal(turns.before[0])
    start = plain
    if system is not None:
        said = f"{_literal(system.before[0])}{{{{ .System }}}}{_literal(system.before[1])}"
        start = f"{{{{ if .System }}}}{said}{{{{ else }}}}{plain}{{{{ end }}}}"
    is_last = "eq (len (slice $.Messages $i)) 1"
    after = _literal(turns.last)
    if turns.user_answer != turns.last:
        after = f"{{{{ if {is_last} }}}}{after}{{{{ else }}}}{_literal(turns.user_answer)}{{{{ end }}}}"
    user = f'{{{{ if eq $m.Role "user" }}}}{{{{ $m.Content }}}}{after}'
    answer = (
        f'{{{{ else if eq $m.Role "assistant" }}}}{{{{ $m.Content }}}}{{{{ if not ({is_last}) }}}}'
        f"{_literal(turns.answer_user)}{{{{ end }}}}{{{{ end }}}}"
    )
    return f"{start}{{{{ range $i, $m := .Messages }}}}{user}{answer}{{{{ end }}}}"


def _literal(text: str) -> str:
    """Text as it stands in a template; what would read as an action becomes a quoted string."""
    return text.replace("{{", '{{ "{{" }}') if "{{" in text else text


def _proof(*, with_system: bool) -> list[list[Message]]:
    """Conversations of one, three and five turns that end with the user's, with and without a system message."""
    roles = ("user", "assistant", "user", "assistant", "user")
    told = [
        [Message(role, _SAID[(at + shift) % len(_SAID)]) for at, role in enumerate(roles[:length])]
        for length in (1, 3, 5)
        for shift in range(len(_SAID))
    ]
    return told + ([[Message("system", _SYSTEM_SAID), *turns] for turns in told] if with_system else [])


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────
def parameters_of(folder: Path, window: int, *, long_window: bool) -> tuple[tuple[str, str], ...]:
    """num_ctx, and what generation_config.json says; a repeat penalty of 1 where it says none, for Ollama's own default
    is not the model's."""
    file = folder / "generation_config.json"
    said = read_json_object(file, code="model.config_damaged", what="generation settings") if file.is_file() else {}
    found = [("num_ctx", str(window if long_window else min(window, LARGEST_CONTEXT)))]
    if said.get("do_sample") is False:
        found.append(("temperature", "0"))
    elif _is_number(said.get("temperature")):
        found.append(("temperature", _number(said["temperature"])))
    if said.get("do_sample") is not False:
        found += [(name, _number(said[name])) for name in ("top_p", "top_k", "min_p") if _is_number(said.get(name))]
    penalty = said.get("repetition_penalty")
    return (*found, ("repeat_penalty", _number(penalty) if _is_number(penalty) else "1"))


def _quoted(text: str) -> str:
    """As Ollama reads it: it takes the quotes off and knows no escapes; one quote ends at the end of a line."""
    plain = f'"{text}"'
    return f'""{plain}""' if plain.startswith('"""') or "\n" in text else plain


def _number(value: int | float) -> str:
    """Without an exponent where it is whole: Ollama reads top_k as a whole number."""
    return str(int(value)) if value == int(value) else repr(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
