"""The lines of the export screen: destinations, sizes with what each costs in perplexity, what was written.

Owns drawing. Must not know formats or estimate: sizes are the `export` command's, figures come with its reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textual.content import Content

from engine.jobs import result_words as words
from engine.jobs.export_report import Agreement, ExportReport
from engine.jobs.spec_export import GGUF_TYPES
from engine.units import format_bytes
from scaler_tui.glyphs import Glyphs
from scaler_tui.widgets.context_words import QUIET
from scaler_tui.widgets.status_line import clip, toned

KIND_CELLS = 8
SIZE_CELLS = 10
MUCH_WORSE = 0.01
"""A perplexity that rose by more than this share is marked."""
MOSTLY_SAME = 0.98
"""Share of positions with the same next token below which a size is marked."""
SPREAD_NATS = 0.25
QUANTISED = ("q6_k", "q5_k_m", "q4_k_m")
"""Types that llama.cpp's own quantiser makes."""
TYPE_WORDS = {
    "f32": "every bit; twice the size of f16 and no better",
    "f16": "what 16-bit programs read",
    "bf16": "as most models are trained",
    "q8_0": "8 bits; rarely any difference",
    "q6_k": "6 bits, by llama.cpp's quantiser",
    "q5_k_m": "5 bits, by llama.cpp's quantiser",
    "q4_k_m": "4 bits, by llama.cpp's quantiser; the usual size",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model can go."""

    id: str
    title: str
    brief: str
    words: str


PLACES = (
    Place(
        "hf",
        "Folder for transformers",
        "vLLM and others read it too",
        "Config, safetensors, tokenizer, model card; loaded once by plain transformers.",
    ),
    Place(
        "gguf",
        "GGUF file",
        "llama.cpp, LM Studio, KoboldCpp",
        "One file a size; each is compared with transformers where llama.cpp is installed.",
    ),
    Place(
        "ollama",
        "Ollama",
        "the same with a Modelfile",
        "The GGUF file with a Modelfile: template, stop tokens, parameters.",
    ),
)


def place_line(number: int, place: Place, width: int, signs: Glyphs, *, chosen: bool, pointed: bool) -> Content:
    """A destination."""
    head = f"{signs.pointer if pointed else ' '} {number} {signs.on if chosen else signs.off} {place.title:<24}"
    room = width - len(head) - 1
    tone = "reverse bold" if pointed else "bold" if chosen else QUIET
    return Content.assemble((head, tone), " ", (clip(place.brief, room, unicode=signs.arrow == "→"), QUIET))


def type_line(
    kind: str, size: int | None, found: Agreement | None, width: int, signs: Glyphs, *, chosen: bool, pointed: bool
) -> Content:
    """A size: bytes before it is written, perplexity and agreement after."""
    head = f"{signs.pointer if pointed else ' '}   {signs.on if chosen else signs.off} {kind:<{KIND_CELLS}}"
    amount = "" if size is None else format_bytes(size)
    start = Content.assemble(
        (head, "reverse bold" if pointed else "bold" if chosen else QUIET), f" {amount:>{SIZE_CELLS}}  "
    )
    room = width - start.cell_length
    if found is None:
        return Content.assemble(start, (clip(TYPE_WORDS[kind], room, unicode=signs.arrow == "→"), QUIET))
    noise = noise_of(found)
    within = 0 < abs(found.perplexity_change) <= noise
    change = "within noise" if within and words.change_words(found) != "unchanged" else words.change_words(found)
    share, positions = f"{found.same_top_token * 100:.1f} %", f"{found.tokens_compared:,}"
    figure = f"  perplexity {found.perplexity:.3f} ({change})"
    counted = f"{figure} over {found.perplexity_tokens:,}" if found.perplexity_tokens else figure
    worse = found.perplexity_change > max(noise, MUCH_WORSE)
    tone = "warn" if found.same_top_token < MOSTLY_SAME or not words.is_sound(found) else "good"
    forms = (f"{share} same token of {positions}", f"{share} same of {positions}", f"{share} same")
    same = next((form for form in forms if len(form + figure) <= room), forms[-1])
    figure = counted if len(same + counted) <= room else figure
    told = toned(figure, "warn" if worse else "quiet") if len(same + figure) <= room else ""
    return Content.assemble(start, toned(same, tone), told)


def noise_of(found: Agreement) -> float:
    """Changes of perplexity below this say nothing: two standard errors of a mean over its tokens.

    Own rule: between two number types the loss of a token differs by about SPREAD_NATS.
    """
    return 2 * SPREAD_NATS / math.sqrt(max(found.perplexity_tokens or found.tokens_compared, 1))


def written(exports: Sequence[ExportReport]) -> Mapping[str, int]:
    """By type, the bytes of the newest file of each."""
    return {file.kind: file.size_bytes for report in exports for file in report.files if file.kind in GGUF_TYPES}


def option_line(title: str, value: str, said: str, width: int, signs: Glyphs, *, pointed: bool) -> Content:
    """A switch."""
    head = f"{signs.pointer if pointed else ' '} {title:<10}"
    shown = f" {value} "
    room = width - len(head) - len(shown) - 1
    return Content.assemble(
        (head, "bold" if pointed else QUIET), (shown, "reverse bold" if pointed else "bold"), " ",
        (clip(said, room, unicode=signs.arrow == "→"), QUIET),
    )  # fmt: skip


def measured(exports: Sequence[ExportReport]) -> Mapping[str, Agreement]:
    """By type, the newest figure of each."""
    return {
        file.kind: file.agreement for report in exports for file in report.files
        if file.agreement is not None and file.kind in GGUF_TYPES
    }  # fmt: skip
