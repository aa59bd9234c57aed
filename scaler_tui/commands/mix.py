"""`mix`: a training mix for longer windows from local text.

Owns its progress line and output. Must not count: the mix is `engine.data.long_mix`'s.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from engine.errors import EngineError, ExitCode
from scaler_tui import output

EVERY_SECONDS = 5.0


def mix(arguments: argparse.Namespace) -> int:
    """Write the mix and tell what is in it."""
    from engine.data.long_documents import parse_source
    from engine.data.long_mix import MixRequest, build_mix
    from engine.models.analyze import analyze
    from engine.units import parse_count, parse_length
    from scaler_tui.commands.look import with_tokenizer

    model_dir = with_tokenizer(arguments.model)
    if model_dir is None:
        raise EngineError(
            "data.model",
            f"'{arguments.model}' is a known shape, not a model with a tokenizer here.",
            next_step="Name a model folder, a hub id that can be reached or is cached, or demo.",
        )
    request = MixRequest(
        sources=tuple(parse_source(text) for text in arguments.sources),
        output=Path(arguments.out).expanduser(),
        context=parse_length(arguments.context),
        model_dir=model_dir,
        model=arguments.model,
        window=analyze(arguments.model).context_length,
        short=tuple(parse_source(text) for text in arguments.short),
        long_share=arguments.long_share,
        tokens=parse_count(arguments.tokens) if arguments.tokens else 0,
        seed=arguments.seed,
    )
    report = build_mix(request, None if arguments.json else Counting())
    if arguments.json:
        output.emit_json(report)
    else:
        from scaler_tui.mix_text import mix_lines

        for line in mix_lines(report):
            output.say(line)
    return int(ExitCode.DONE)


class Counting:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + EVERY_SECONDS

    def __call__(self, documents: int, tokens: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_SECONDS
            output.note(f"Counted {documents:,} documents, {tokens:,} tokens ...")
