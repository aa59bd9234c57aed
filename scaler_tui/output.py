"""Everything the headless commands write: JSON on request, text otherwise, errors on stderr, and the exit code.

Owns stdout, stderr and the translation of failures to exit codes. Must not know any command. Text always gets out:
what a terminal's character set lacks is written in ASCII, a reader that left is no error.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import msgspec

from engine.errors import EngineError, ExitCode

_ASCII = {"–": "-", "—": "-", "−": "-", "→": "->", "←": "<-", "·": "|", "×": "x", "…": "...", "≈": "~", "≤": "<="}
_FALLBACK = "scaler_wizard_ascii"


def prepare_streams() -> None:
    """Make stdout and stderr usable whatever the locale is and whatever the shell closed. Call once, first."""
    codecs.register_error(_FALLBACK, _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`: nothing can be written, which is what was asked for
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_FALLBACK)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_ASCII.get(character, "?") for character in error.object[error.start : error.end]), error.end


def emit_json(document: Any, *, indent: int = 2) -> None:
    """Write `document` (structs and dataclasses allowed) as JSON; `indent` 0 makes it one line."""
    try:
        encoded = msgspec.json.encode(document)
        text = (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a narrow character set, or a file name that is not valid Unicode: escape it
        text = json.dumps(msgspec.to_builtins(document), indent=indent or None, ensure_ascii=True)
    _put(sys.stdout, text + "\n")


def say(text: str = "") -> None:
    """One line of human output."""
    _put(sys.stdout, text + "\n")


def say_block(text: str) -> None:
    """Text that ends as it ends: a file on stdout."""
    _put(sys.stdout, text)


def note(text: str) -> None:
    """One line beside the output: progress, hints; on stderr so that pipes stay clean."""
    _put(sys.stderr, text + "\n")


def draw(text: str) -> None:
    """Part of a line on stderr, at once: a progress line that is drawn over."""
    _put(sys.stderr, text)


def flush() -> None:
    """Everything written so far reaches its reader now."""
    _put(sys.stdout, "", flush=True)


def _put(stream: TextIO, text: str, *, flush: bool = False) -> None:
    try:
        stream.write(text)
        if flush or stream is sys.stderr:
            stream.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno == errno.EPIPE:
            raise BrokenPipeError(*error.args) from error
        _silence(stream)
        raise EngineError(
            "output.unwritable",
            "The output cannot be written.",
            cause=error.strerror or str(error),
            next_step="Send it to a place that takes it; runs in the background are not touched.",
        ) from error


def _silence(stream: TextIO) -> None:
    """Point the stream at nothing, so that neither we nor Python's exit complain about it again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def show_error(error: EngineError, *, as_json: bool) -> None:
    """What, cause, next step; as an `error` object on stdout with `--json`, on stderr otherwise."""
    if as_json and error.code != "output.unwritable":
        emit_json({"error": error.as_dict()})
        return
    note(f"scaler-wizard: {error.what}")
    if error.cause:
        note(f"  Cause: {error.cause}")
    if error.next_step:
        note(f"  Next:  {error.next_step}")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns as wide as their content; never wrapped, never cut."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for line in ([*headings], *rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def guarded(command: Callable[[], int], *, as_json: bool) -> int:
    """Run `command`; every failure ends as text and a documented exit code, never as a traceback."""
    try:
        try:
            code = command()
            flush()
            return code
        except EngineError as error:
            show_error(error, as_json=as_json)
            code = int(error.exit_code)
        except KeyboardInterrupt:
            interrupted = EngineError("interrupted", "Interrupted.", exit_code=ExitCode.INTERRUPTED)
            show_error(interrupted, as_json=as_json)
            code = int(ExitCode.INTERRUPTED)
        except BrokenPipeError:
            raise
        except Exception as error:  # the last resort: a bug of ours, reported with a file instead of a traceback
            show_error(crash_error(error), as_json=as_json)
            code = int(ExitCode.RUN_FAILED)
        flush()
        return code
    except BrokenPipeError:
        # The reader of our pipe left (`| head`): nothing to tell anybody.
        _silence(sys.stdout)
        _silence(sys.stderr)
        return int(ExitCode.DONE)
    except EngineError as error:  # telling it failed too; its own text goes to whichever stream is left
        with contextlib.suppress(EngineError, OSError):
            show_error(error, as_json=False)
        return int(error.exit_code)


def crash_error(error: Exception) -> EngineError:
    """Write the traceback to a report file and describe it as an error a user can act on."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="scaler-wizard-report-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as report:
            report.write(text)
        next_step = f"The details are in {report.name}; please attach that file to a report."
    except OSError as unwritable:
        next_step = f"The details could not be written ({unwritable.strerror}); please report what you did."
    return EngineError(
        "internal",
        f"Scaler Wizard met an internal error: {type(error).__name__}: {error}",
        cause="This is a fault of the program, not of your input. Runs in the background are not touched.",
        next_step=next_step,
        exit_code=ExitCode.RUN_FAILED,
    )


def stderr_is_utf8() -> bool:
    """Whether notes may hold more than ASCII."""
    return (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
