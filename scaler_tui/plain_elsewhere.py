"""Running a plan elsewhere, asked line by line: a host over ssh, or a job file of SkyPilot or dstack.

Owns these prompts. What the places are and how results are told is in `scaler_tui.places`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui.places import EXISTS, Place, file_lines, file_of, proposed, words_for
from scaler_tui.prompts import choose, read, say

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec


def go_elsewhere(place: Place, spec: JobSpec, *, card: str = "") -> int:
    """Ask what the place needs, and do it; `card` is the one to rent, "" for the cheapest. Returns the exit code.
    Raises Back, Left, and EngineError for a refusal."""
    say(f"  {place.words}")
    return _write_job(place, spec, card) if place.is_file else _begin_there(spec)


def _begin_there(spec: JobSpec) -> int:
    """ssh may ask for a password here: there is a terminal for it."""
    from engine.remote.begin import Wish, begin
    from engine.remote.ssh import parse_host
    from scaler_tui.commands.remote import watch

    host = parse_host(read("  Which machine (user@address): "))
    begun = begin(host, spec, base=Path.cwd(), wish=Wish(may_ask=sys.stdin.isatty()), say=lambda text: say(f"  {text}"))
    say(f"Run {begun.run_dir.name} works there; its mirror is among the runs here.")
    return watch(begun.run_dir)


def _write_job(place: Place, spec: JobSpec, card: str) -> int:
    from scaler_tui.feeds.twin import ask_twin
    from scaler_tui.spec_file import temporary_spec

    name = proposed(place, spec)
    out = file_of(read(f"  Job file [{name}]: ") or name)
    what = "empty: a new one" if place.makes_bucket else "or the name of a volume"
    kept = read(f"  Bucket that keeps what is needed to go on, such as s3://mine ({what}): ")
    with temporary_spec(spec, Path.cwd()) as path:
        try:
            told = ask_twin(*words_for(place, str(out), path, card=card, kept=kept))
        except EngineError as error:
            if error.code != EXISTS:
                raise
            say(f"  {error.what}")
            if choose("What now", ["Leave it as it is", "Replace it and its folder"]) == 1:
                raise
            told = ask_twin(*words_for(place, str(out), path, card=card, kept=kept, force=True))
    for label, words in file_lines(place, told):
        say(f"{label}: {words}")
    return int(ExitCode.DONE)
