"""Where a job can run other than here: a machine over ssh, or a rented one by a job file of SkyPilot or dstack.

Owns the places, the file name that is proposed for a job file, the subcommand that does it, and its result in words.
Must not know screens or prompts: both use it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

SSH = "ssh"
EXISTS = "file.exists"
"""The refusal to write over something; the user may overrule it."""


@dataclass(frozen=True, slots=True)
class Place:
    """One of them."""

    id: str
    name: str
    title: str
    brief: str
    words: str
    launch: str = ""
    """The command that starts a job file."""
    makes_bucket: bool = False
    """Whether its tool makes a bucket where none is named."""

    @property
    def label(self) -> str:
        """What choosing it does, for a list of things to do."""
        if self.is_file:
            return f"Write a {self.name} job file for {self.brief}"
        return f"Start it on another machine over {self.name}; it {self.brief}"

    @property
    def is_file(self) -> bool:
        """Whether a job file is written; nothing runs then."""
        return self.id != SSH


PLACES = (
    Place(
        SSH,
        "ssh",
        "Another machine over ssh",
        "runs there, is watched here",
        "The spec, the files it names and this program are copied there once. The run starts there, in the background, "
        "if it fits there; its mirror opens here, where pause, stop, resume and the card work as on any run. The host "
        "is user@address or a name of ~/.ssh/config, with a key ssh can use unasked.",
    ),
    Place(
        "sky",
        "SkyPilot",
        "A SkyPilot job file",
        "a rented machine, in any cloud",
        "A job file for the cheapest rented card on which this job fits, and a folder beside it that it uploads. "
        "Nothing is rented and nothing is spent here: SkyPilot does that, when you start it.",
        "sky jobs launch",
        makes_bucket=True,
    ),
    Place(
        "dstack",
        "dstack",
        "A dstack job file",
        "a rented machine, or your own fleet",
        "A job file for the cheapest rented card on which this job fits, and a folder beside it that it uploads. "
        "Nothing is rented and nothing is spent here: dstack does that, when you start it.",
        "dstack apply -f",
    ),
)


def proposed(place: Place, spec: JobSpec) -> str:
    """A job file's name in the current folder, such as "demo-qlora.sky.yaml"."""
    model = Path(spec.model.source).name
    slug = re.sub(r"[^a-z0-9]+", "-", f"{model}-{spec.task.value}".lower()).strip("-")
    return f"{slug}.{place.id}.yaml"


def file_of(text: str) -> Path:
    """The job file that was typed, absolute. Raises EngineError `file.unnamed`."""
    path = Path(text).expanduser().absolute()
    if not text or path.is_dir():
        raise EngineError("file.unnamed", "A job file needs a name.", next_step="Type one such as job.yaml.")
    return path


def words_for(
    place: Place, where: str, spec_file: Path, *, card: str = "", kept: str = "", force: bool = False
) -> tuple[str, ...]:
    """The subcommand, without the program: `where` is the host or the job file; `card` the one to rent, "" for the
    cheapest; `kept` a bucket's URL or a volume's name. `force` starts there what does not fit, or writes over the job
    file. Raises EngineError."""
    flags = ("--force",) if force else ()
    if place.is_file:
        rented = ("--gpu", card) if card else ()
        keeping = ("--bucket" if "://" in kept or place.makes_bucket else "--volume", kept) if kept else ()
        out = str(file_of(where))
        return ("export", place.id, str(spec_file), "--out", out, "--json", *rented, *keeping, *flags)
    if not where or where.startswith("-"):
        raise EngineError("remote.host", "A machine needs a name.", next_step="Type one such as ada@gpu-box.")
    return ("remote", where, str(spec_file), "--detach", "--json", *flags)


def file_lines(place: Place, told: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """What `export` answered, as label and words."""
    count, price = int(told["count"]), float(told["usd_per_hour"])
    machine = (f"{count}x " if count > 1 else "") + str(told["card"])
    lines = [
        ("Wrote", str(told["file"])),
        ("Beside it", f"{told['folder']}: the spec and this program"),
        ("Machine", machine + (f", about ${price:.2f} an hour" if price else "")),
    ]
    lines += [("Uploads", str(path)) for path in told["uploads"]]
    return [*lines, ("Start it", f"{place.launch} {shlex.quote(str(told['file']))}")]
