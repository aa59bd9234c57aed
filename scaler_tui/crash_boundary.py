"""A crash of the interface becomes one paragraph and a report file instead of a page of traceback.

Owns the one private method of Textual this needs, `App._handle_exception` (8.2.8; `tests/tui/test_app.py` fails when
it changes). The terminal is restored by Textual's normal exit; runs are other processes and do not notice.
"""

from __future__ import annotations

from textual.app import App

from scaler_tui.output import crash_error


class CrashBoundary(App[None]):
    """An App that leaves in good order when one of its own handlers fails."""

    crash_report: str | None = None

    def _handle_exception(self, error: Exception) -> None:
        if self.is_headless:  # tests want the exception itself
            super()._handle_exception(error)
            return
        report = crash_error(error)
        self.crash_report = f"{report.what}\n  {report.cause}\n  {report.next_step}"
        self.exit(return_code=int(report.exit_code))
