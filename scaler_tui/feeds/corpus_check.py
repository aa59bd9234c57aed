"""Reads a source of large text through the headless twin, `scaler-wizard corpus`, in a process of its own.

Owns the process and the message that brings its report. What is tokenised meanwhile stays in the cache, so that the
run starts with it.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
from textual.message import Message
from textual.message_pump import MessagePump

from engine.corpus.report import CorpusReport
from engine.errors import EngineError
from engine.jobs.spec import JobSpec, ModelSection, SourceSection, StreamSection, Task, TrainingSection
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.spec_file import temporary_spec
from scaler_tui.text_plan import Checked

CHECKED_TOKENS = 20_000_000
"""Of a source, at least: enough to know it, and seconds to minutes of work."""


class SourceChecked(Message):
    """The process has answered about a source."""

    def __init__(self, model: str, source: SourceSection, found: Checked) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.found = found


def run_check(model: str, source: SourceSection) -> Checked:
    """The twin's report on `source`, or its error."""
    alone = msgspec.structs.replace(source, weight=1.0)
    try:
        spec = JobSpec(
            task=Task.FULL,
            model=ModelSection(source=model),
            sources=(alone,),
            stream=StreamSection(bad_share=1.0),  # to find out what is unreadable, not to end because of it
            training=TrainingSection(max_tokens=CHECKED_TOKENS),
        )
        with temporary_spec(spec, Path.cwd()) as path:
            document = ask_twin("corpus", "--json", str(path))
        report = msgspec.convert(document.get("report"), CorpusReport)
    except EngineError as error:
        return Checked(None, error)
    except msgspec.ValidationError as error:
        return Checked(None, EngineError("twin.failed", "`corpus` answered something else.", cause=str(error)))
    return Checked(report.sources[0])


def check_source_in_thread(target: MessagePump, model: str, source: SourceSection) -> None:
    """Check off the interface thread and post SourceChecked to `target`."""

    def work() -> None:
        target.post_message(SourceChecked(model, source, run_check(model, source)))

    threading.Thread(target=work, name="corpus check", daemon=True).start()
