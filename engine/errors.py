"""The one error family of the engine: what happened, why, what to do next, and the exit code it maps to.

Owns the error type and the documented exit codes. Must not know who shows the error or where.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every subcommand; they are part of the public contract."""

    DONE = 0
    """The command did what was asked."""
    DECLINED = 1
    """The user said no, or left the wizard without starting anything."""
    BAD_INPUT = 2
    """Usage, an unreadable file, an unknown model or card."""
    DOES_NOT_FIT = 4
    """The estimate says the job does not fit the machine."""
    RUN_FAILED = 5
    """The run started and failed."""
    INTERRUPTED = 130
    """Ctrl+C."""


class EngineError(Exception):
    """A failure that a user can act on. Front ends print it; a traceback of it never reaches a user."""

    def __init__(
        self,
        code: str,
        what: str,
        *,
        cause: str = "",
        next_step: str = "",
        exit_code: ExitCode = ExitCode.BAD_INPUT,
        key: str = "",
    ) -> None:
        """`code` is a stable dotted slug ("model.not_found"); the other texts are sentences for people. `key` is what
        is wrong in a spec ("stages[2].layers"), so that whoever has the file can name its line."""
        super().__init__(what)
        self.code = code
        self.what = what
        self.cause = cause
        self.next_step = next_step
        self.exit_code = exit_code
        self.key = key

    def as_dict(self) -> dict[str, str]:
        """The error as the `error` object of `--json` output."""
        return {"code": self.code, "what": self.what, "cause": self.cause, "next_step": self.next_step}
