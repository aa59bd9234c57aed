"""A spec started on another machine: what it names is copied, the program put there, the run started and mirrored.

Owns the order of these steps and the folder of each. Must not know screens. Every step may be done
again: what is there already is found by its hash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs.elsewhere import RemoteRecord
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import dump_spec, with_absolute_paths
from engine.remote import mirror, tail
from engine.remote.farside import Far, order, patiently, reach, told_error
from engine.remote.inputs import Bundle, collect, with_places
from engine.remote.send import Copy, Item, Sent, place_bundle
from engine.remote.ssh import Host
from engine.remote.wheel import Wheel, installed_versions, pack
from engine.units import format_bytes

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a job is to be started there."""

    python: str = ""
    """A python there that has everything the program needs; "" makes an environment."""
    home: str = ""
    """The folder there for all of it; "" is the program's own."""
    force: bool = False
    may_ask: bool = False
    """Whether ssh may ask for a password on the terminal."""


@dataclass(frozen=True, slots=True)
class Program:
    """`scaler-wizard` on the host."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A host that was looked at."""

    far: Far
    home: str
    root: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that works there, and its mirror here."""

    run_dir: Path
    record: RemoteRecord
    sent: Sent


def look(host: Host, wish: Wish, say: Say = silent) -> Place:
    """Connect and see what is there. Raises EngineError `remote.*`."""
    far = reach(host, python=wish.python, may_ask=wish.may_ask)
    found = order(far, "look", home=wish.home)
    say(
        f"{host.name}: {found['host']}, {found['platform']}, Python {found['python_version']}, "
        f"{format_bytes(found['free_bytes'])} free in {found['home']}."
    )
    return Place(far, found["home"], f"{found['home']}/remote", found["free_bytes"])


def begin(host: Host, spec: JobSpec, *, base: Path, wish: Wish, say: Say = silent) -> Begun:
    """Copy, set up, start and mirror. File names in `spec` are relative to `base`. Raises EngineError."""
    spec = with_absolute_paths(spec, base.absolute())
    bundles = collect(spec)
    place = look(host, wish, say)
    wheel = pack()
    sent = _copy(place, bundles, wheel, say)
    program = _program(place, spec, wheel, wish, say)
    places = {bundle.value: place_bundle(place.far, place.root, bundle) for bundle in bundles}
    say("Checking and starting it there ...")
    there = _start(place, with_places(spec, places), program, force=wish.force)
    say(f"Started there as {there['id']}.")
    record = RemoteRecord(
        host=host.name,
        directory=there["directory"],
        ssh=host.program,
        python=place.far.python,
        program=program.words,
        environment=program.environment,
        inputs=tuple((path, name) for name, path in places.items()),
    )
    return Begun(mirrored(place.far, record), record, sent)


def mirrored(far: Far, record: RemoteRecord) -> Path:
    """The mirror of a run on the host, and a process that keeps it up to date. Raises EngineError."""
    spec = read_file(far, f"{record.directory}/spec.toml")
    run = read_file(far, f"{record.directory}/run.json")
    run_dir = mirror.create(PurePosixPath(record.directory).name, record, spec, run)
    tail.start(run_dir)
    return run_dir


def read_file(far: Far, path: str) -> bytes:
    """A small file there. Raises EngineError."""
    answer = patiently(lambda: order(far, "read", path=path))
    return bytes.fromhex(answer["content"])


def _copy(place: Place, bundles: tuple[Bundle, ...], wheel: Wheel, say: Say) -> Sent:
    items = [Item(file.sha, file.size, file.path) for bundle in bundles for file in bundle.files]
    items.append(Item(wheel.sha, len(wheel.content), content=wheel.content))
    for bundle in bundles:
        count = f"{len(bundle.files)} files, " if len(bundle.files) > 1 else ""
        say(f"{bundle.key}: {count}{format_bytes(bundle.size)} from {bundle.value}.")
    progress = Progress(say)
    copy = Copy(place.far, place.root, items, progress.on_bytes)
    sent = copy.run(place.free_bytes, say, progress.expect)
    copied = f"{format_bytes(sent.copied_bytes)} copied" if sent.copied_bytes else "Nothing to copy"
    say(f"{copied}; {format_bytes(sent.reused_bytes)} were there already.")
    return sent


class Progress:
    """A line per tenth of what is to be copied."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._total = self._done = self._tenth = 0

    def expect(self, total: int) -> None:
        """So much is to come."""
        self._total = total
        self._say(f"Copying {format_bytes(total)} ...")

    def on_bytes(self, count: int) -> None:
        """So much went out."""
        self._done += count
        tenth = 10 * self._done // max(self._total, 1)
        if tenth > self._tenth and tenth < 10:
            self._tenth = tenth
            self._say(f"  {tenth * 10} %, {format_bytes(self._done)} of {format_bytes(self._total)}")


def _program(place: Place, spec: JobSpec, wheel: Wheel, wish: Wish, say: Say) -> Program:
    """Ready to be called there, on the python that was named or in an environment with what it needs. The program
    itself lies beside: a newer one finds the environment made."""
    far, root = place.far, place.root
    home = ("SCALER_WIZARD_HOME", place.home)
    put = patiently(lambda: order(far, "wheel", root=root, name=wheel.name, sha=wheel.sha))
    environment = (home, ("PYTHONPATH", put["unpacked"]))
    extras = ["benchmarks"] if spec.evaluation.tasks else []
    needed = (*wheel.requirements, *(["lm-eval"] if extras else []))
    if wish.python:
        missing = order(far, "lacks", packages=needed)["missing"]
        if missing:
            raise EngineError(
                "remote.python_lacks",
                f"{wish.python} on {far.host.name} lacks {', '.join(missing)}.",
                next_step="Install them there, or leave --python out: an environment is then made.",
            )
        return Program((far.python, "-P", "-m", "scaler_tui"), environment)
    say("Looking for an environment with the packages; making one takes some minutes, once ...")
    constraints = installed_versions(needed)
    needs = "\n".join([wheel.needs, *constraints, *extras, f"python {far.python}"])
    key = hashlib.sha256(needs.encode()).hexdigest()[:16]
    made = patiently(
        lambda: order(
            far, "environment", root=root, key=key, wheel=put["wheel"], extras=extras, constraints=constraints
        ),
        say=say,
    )
    say("The environment was made." if made["made"] else "The environment is there.")
    return Program((made["python"], "-P", "-m", "scaler_tui"), environment)


def _start(place: Place, spec: JobSpec, program: Program, *, force: bool) -> dict[str, Any]:
    """The JSON of `scaler-wizard start` there, which runs once however often the connection is lost meanwhile."""
    job = f"{place.root}/jobs/{secrets.token_hex(8)}"
    path = f"{job}/spec.toml"
    patiently(lambda: order(place.far, "write", path=path, text=dump_spec(spec)))
    words = [*program.words, "start", path, "--json", *(["--force"] if force else [])]
    return patiently(lambda: call(place.far, words, program.environment, once=job))  # type: ignore[no-any-return]


def call(far: Far, words: list[str], environment: tuple[tuple[str, str], ...], *, once: str = "") -> Any:
    """The JSON of a subcommand there. Raises EngineError: its own refusal, or that it ended without an answer."""
    answer = order(far, "call", words=words, environment=dict(environment), once=once)
    try:
        document = msgspec.json.decode(answer["out"])
    except msgspec.DecodeError:
        last = (answer["err"].strip().splitlines() or [f"It ended with code {answer['code']}."])[-1]
        raise EngineError(
            "remote.failed",
            f"The program on {far.host.name} gave no answer.",
            cause=last,
            next_step="Is the python there complete? Leave --python out to have an environment made.",
            exit_code=ExitCode.RUN_FAILED,
        ) from None
    if isinstance(document, dict) and "error" in document:
        error = told_error(far.host.name, document["error"])
        code = int(answer["code"])
        error.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.RUN_FAILED
        raise error
    return document
