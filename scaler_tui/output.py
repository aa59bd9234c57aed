"""Everything the headless commands write: JSON on request, text otherwise, errors on stderr, and the exit code.

Owns stdout, stderr and the translation of failures to exit codes. Must not know any command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engine.errors import EngineError, ExitCode


def emit_json(document: Any) -> None:
    """Write `document` (structs and dataclasses allowed) as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def say(text: str = "") -> None:
    """One line of human output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line beside the output: progress, hints; on stderr so that pipes stay clean."""
    sys.stderr.write(text + "\n")


def show_error(error: EngineError, *, as_json: bool) -> None:
    """What, cause, next step; as an `error` object on stdout with `--json`, on stderr otherwise."""
    if as_json:
        emit_json({"error": error.as_dict()})
        return
    note(f"scaler-wizard: {error.what}")
    if error.cause:
        note(f"  Cause: {error.cause}")
    if error.next_step:
        note(f"  Next:  {error.next_step}")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns as wide as their content; never wrapped, never cut."""
    widths = [
        max(len(headings[i]), *(len(row[i]) for row in rows)) if rows else len(headings[i])
        for i in range(len(headings))
    ]
    for line in ([*headings], *rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def guarded(command: Callable[[], int], *, as_json: bool) -> int:
    """Run `command`; every failure ends as text and a documented exit code, never as a traceback."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except EngineError as error:
        show_error(error, as_json=as_json)
        return int(error.exit_code)
    except KeyboardInterrupt:
        note("Interrupted.")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our pipe left (`| head`): nothing to tell, and Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except Exception as error:  # the last resort: a bug of ours, reported with a file instead of a traceback
        show_error(crash_error(error), as_json=as_json)
        return int(ExitCode.RUN_FAILED)


def crash_error(error: Exception) -> EngineError:
    """Write the traceback to a report file and describe it as an error a user can act on."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile("w", prefix="scaler-wizard-report-", suffix=".txt", delete=False) as report:
        report.write(text)
    return EngineError(
        "internal",
        f"Scaler Wizard met an internal error: {type(error).__name__}: {error}",
        cause="This is a fault of the program, not of your input. Runs in the background are not touched.",
        next_step=f"The details are in {report.name}; please attach that file to a report.",
        exit_code=ExitCode.RUN_FAILED,
    )


def stderr_is_utf8() -> bool:
    """Whether notes may hold more than ASCII."""
    return (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
