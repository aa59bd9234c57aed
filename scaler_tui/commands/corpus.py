"""`corpus`: what training would read of large text, found out and tokenised now.

Owns its progress line and output. Must not read text: `engine.corpus` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.corpus.report import Progress
    from engine.jobs.spec_stream import SourceSection, StreamSection

_NEXT_EVERY = 5
"""Progress comes every second or so; of these one line is written."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be read."""

    sources: tuple[SourceSection, ...]
    stream: StreamSection
    tokenizer_dir: Path
    needed: Mapping[str, int] | None
    texts: Iterable[str]
    seed: int


def corpus(arguments: argparse.Namespace) -> int:
    """Read, and tell what was found."""
    asked = _of_spec(arguments) if _is_spec(arguments.paths) else _of_paths(arguments)
    from engine.corpus.prepare import prepare_corpus

    found = prepare_corpus(
        asked.sources,
        asked.stream,
        asked.tokenizer_dir,
        asked.needed,
        asked.texts,
        None if arguments.json else _Progress(),
        seed=asked.seed,
    )
    if arguments.json:
        output.emit_json({"report": found.report, "fingerprint": found.fingerprint, "tokens": found.tokens})
    else:
        from scaler_tui.corpus_text import corpus_lines

        for line in corpus_lines(found.report):
            output.say(line)
    return int(ExitCode.DONE)


def _is_spec(paths: list[str]) -> bool:
    return len(paths) == 1 and paths[0].endswith(".toml")


def _of_spec(arguments: argparse.Namespace) -> _Asked:
    from engine.corpus.evaluation_texts import evaluation_texts
    from engine.jobs.spec_toml import load_spec, with_absolute_paths
    from engine.schedule.steps import tokens_to_read

    path = Path(arguments.paths[0]).expanduser()
    spec = with_absolute_paths(load_spec(path), path.absolute().parent)
    if not spec.sources:
        raise EngineError(
            "corpus.no_sources",
            f"{path} has no [[sources]].",
            next_step="Add one with a name and a path; `scaler-wizard data check` looks at rows for fine-tuning.",
        )
    if spec.evaluation.tasks and not arguments.json:
        output.note("Questions of evaluation.tasks are compared too, but only when the run starts.")
    return _Asked(
        sources=spec.sources,
        stream=spec.stream,
        tokenizer_dir=_tokenizer_dir(spec.model.source),
        needed=None if arguments.all else tokens_to_read(spec),
        texts=evaluation_texts(spec),
        seed=spec.training.seed,
    )


def _of_paths(arguments: argparse.Namespace) -> _Asked:
    from engine.corpus.evaluation_texts import texts_of
    from engine.jobs.spec_stream import HUB, SourceSection, StreamSection
    from engine.units import parse_count

    most = parse_count(arguments.tokens) if arguments.tokens else 0
    sources: list[SourceSection] = []
    for text in arguments.paths:
        path = text if text.startswith(HUB) else str(Path(text).expanduser().absolute())
        name = _name(text, [source.name for source in sources])
        sources.append(SourceSection(name=name, path=path, field=arguments.field, max_tokens=most))
    stream = StreamSection(
        deduplicate="near" if arguments.near else "exact",
        bad_input="refuse" if arguments.strict else "skip",
        bad_share=1.0,  # this is the command that finds out
        cache=arguments.cache,
    )
    texts = (text for path in arguments.against for text in texts_of(path, path, arguments.field))
    return _Asked(tuple(sources), stream, _tokenizer_dir(arguments.model), None, texts, 17)


def _name(text: str, taken: list[str]) -> str:
    """A word for a path, unlike the others."""
    stem = text.rstrip("/").rpartition("/")[2].partition(".")[0].lower()
    word = "".join(c if c.isascii() and c.isalnum() else "-" for c in stem).strip("-")[:36] or "text"
    number = 2
    found = word
    while found in taken:
        found, number = f"{word}-{number}", number + 1
    return found


def _tokenizer_dir(model: str) -> Path:
    from scaler_tui.commands.look import with_tokenizer

    folder = with_tokenizer(model)
    if folder is None:
        raise EngineError(
            "data.model",
            f"'{model}' is a known shape, not a model with a tokenizer here.",
            next_step="Name a model folder, a hub id that can be reached or is cached, or demo.",
        )
    return folder


class _Progress:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._heard = 0

    def __call__(self, progress: Progress) -> None:
        self._heard += 1
        if progress.doing == "waiting":
            output.note(f"{progress.source}: another process is reading it; waiting ...")
        elif progress.doing != "comparing" and self._heard % _NEXT_EVERY == 0:
            of = f" of {progress.needed_tokens:,}" if progress.needed_tokens else ""
            bad = f", {progress.unreadable:,} unreadable" if progress.unreadable else ""
            output.note(
                f"{progress.source}: {progress.doing}, {progress.documents:,} documents, {progress.tokens:,}{of} "
                f"tokens{bad} ..."
            )
