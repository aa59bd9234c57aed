"""`adapters sweep` and `adapters score`: weights of a mix measured on the user's rows, searched or given.

Owns reading the words, the log's place and the text. Must not import torch: the measuring is a process of its own
(`engine.evaluation.mix_score`).
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.jobs.mix_lines import Line, Measured, SweepReport

_MODULE = "engine.evaluation.mix_score"
_NAMED = {"demo", "demo-long"}


@dataclass(frozen=True, slots=True)
class Weighed:
    """An adapter on the command line: `DIR`, `RUN`, `DIR=0.5`."""

    word: str
    """Without the weight."""
    name: str
    folder: Path
    weight: float
    run: Path | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What both commands are told."""

    adapters: tuple[Weighed, ...]
    base: Path
    data: str

    def words(self, arguments: argparse.Namespace) -> list[str]:
        """The flags of the scoring process."""
        named = [word for one in self.adapters for word in ("--adapter", f"{one.name}={one.folder}")]
        return ["--base", str(self.base), *named, "--data", self.data, "--dtype", arguments.dtype]


def asked_of(arguments: argparse.Namespace) -> Asked:
    """Raises EngineError `adapter.*`, `model.*`, `run.*`, `data.missing`."""
    from engine.adapters.mix import needed_base
    from scaler_tui.commands.adapters import base_folder
    from scaler_tui.commands.adapters_mix import shares_of, split_weight

    shares = shares_of(arguments.adapters)
    base = needed_base(shares, base_folder(arguments.base))
    found: list[Weighed] = []
    for text, share in zip(arguments.adapters, shares, strict=True):
        name = _free_name(share.label.replace("=", "-"), [one.name for one in found])
        folder = share.adapter.path.absolute()
        found.append(Weighed(split_weight(text)[0], name, folder, share.weight, _run_of(folder)))
    return Asked(tuple(found), base.folder.absolute(), _data(arguments.data, found))


def _free_name(name: str, taken: Sequence[str]) -> str:
    numbers = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbers if one not in taken)


def _run_of(folder: Path) -> Path | None:
    """The run directory that an output lies in."""
    return next((one for one in folder.parents[:4] if (one / "spec.toml").is_file()), None)


def _data(given: str, adapters: Sequence[Weighed]) -> str:
    """What is measured on: a file, else what the first run held out."""
    if given:
        if given in _NAMED:
            return given
        path = Path(given).expanduser()
        if not path.is_file():
            raise EngineError(
                "data.missing", f"There is no file {given}.", next_step='Name a data file with --data; or "demo".'
            )
        return str(path.absolute())
    from engine.jobs.spec_toml import load_spec

    for one in adapters:
        if one.run is not None and (heldout := load_spec(one.run / "spec.toml").data.heldout):
            return heldout
    raise EngineError(
        "adapter.no_data",
        "No rows to measure on are named.",
        cause="None of the adapters comes from a run that kept a file of held-out rows.",
        next_step='Name a file that none of them was trained on with --data; "demo" for the demo\'s.',
    )


# ── sweep ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def sweep(arguments: argparse.Namespace) -> int:
    """Search weights, tell what was found. Raises EngineError."""
    from engine.jobs.mix_lines import SweepReport
    from engine.paths import ensure_writable, state_home
    from engine.surgery.helpers import Failing, run_module
    from scaler_tui.growth_progress import growth_view
    from scaler_tui.terminal import ends_when_told

    check_rank(arguments)
    asked = asked_of(arguments)
    words = [*asked.words(arguments), *_method_words(arguments), "--sweep", str(arguments.tries)]
    folder = ensure_writable(state_home() / "sweeps")
    log = folder / f"{_key(asked)}.jsonl"
    if arguments.fresh:
        log.unlink(missing_ok=True)
    out = folder / f"{_key(asked)}.{os.getpid()}.json"
    failing = Failing(
        "adapter.sweep_failed",
        "Run the same command again: what was measured is kept.",
        own_exit_code=True,
        patience_seconds=2.0,
    )
    quiet = arguments.json or arguments.json_lines
    try:
        with ends_when_told(), growth_view(quiet=quiet) as view:
            view.show("loading base and adapters")

            def hear(raw: bytes) -> None:
                if arguments.json_lines:
                    output.say_block(raw.decode(errors="replace"))
                    output.flush()
                _show(view, raw)

            run_module(
                _MODULE, [*words, "--log", str(log), "--out", str(out)], folder / "sweep.log", "sweep",
                lambda _: None, failing=failing, hear=hear,
            )  # fmt: skip
        report = msgspec.json.decode(out.read_bytes(), type=SweepReport)
    except KeyboardInterrupt:
        raise EngineError(
            "interrupted",
            "Interrupted; what was measured is kept.",
            next_step="Run the same command again: it goes on from there.",
            exit_code=ExitCode.INTERRUPTED,
        ) from None
    finally:
        out.unlink(missing_ok=True)
    if arguments.json_lines:
        output.emit_json(report, indent=0)
    elif arguments.json:
        output.emit_json({**msgspec.to_builtins(report), "helps": report.helps, "verdict": verdict(report)})
    else:
        _print(report, next_words(asked, report, arguments))
    return int(ExitCode.DONE)


def _show(view: Any, raw: bytes) -> None:
    from engine.jobs.mix_lines import Tried, decode_line

    line = decode_line(raw)
    if isinstance(line, Tried):
        view.show("measuring weights", line.number, line.total, counts_bytes=False)


def check_rank(arguments: argparse.Namespace) -> None:
    """Before anything is loaded. Raises EngineError `usage`."""
    if arguments.method == "svd" and not arguments.rank:
        raise EngineError(
            "usage", "--method svd cuts the sum to a rank, and --rank says none.", next_step="Give --rank, such as 16."
        )


def _method_words(arguments: argparse.Namespace) -> list[str]:
    return [
        "--method", arguments.method, "--density", f"{arguments.density:g}", "--signs", arguments.signs,
        "--rank", str(arguments.rank), "--seed", str(arguments.seed),
    ]  # fmt: skip


def _key(asked: Asked) -> str:
    """Which log: base, adapters and data; the process tells methods and versions of files apart inside it."""
    import hashlib

    told = [str(asked.base), *(str(one.folder) for one in asked.adapters), asked.data]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def verdict(report: SweepReport) -> str:
    """What the search is worth, in sentences."""
    told = f"The weights were chosen for the {report.rows} rows that were searched on"
    if report.best.check_loss is None:
        return f"{told}; there were no others to check them on, so the loss is better than it will be elsewhere."
    rest = f"{told}. On {report.check_rows} other rows of the same file"
    base, best = report.base.check_loss or 0.0, report.best.check_loss
    if report.helps:
        share = f"{(1 - best / base) * 100:.1f} % below the base's" if base > 0 else "below the base's"
        return f"{rest} the loss is {best:.4f}, {share}, and below that of every adapter alone."
    others = {"the base": base, **dict(zip(report.adapters, (one.check_loss for one in report.alone), strict=True))}
    name, loss = min(others.items(), key=lambda pair: pair[1] if pair[1] is not None else float("inf"))
    alone = name if name == "the base" else f"{name} alone"
    return f"{rest} the loss is {best:.4f}, no better than {alone} with {loss:.4f}: take that instead."


def weight_words(names: Sequence[str], weights: Sequence[float]) -> str:
    """ "0.7 x facts, 0.35 x tone"; what has no weight is left out."""
    return ", ".join(f"{w:g} x {name}" for name, w in zip(names, weights, strict=True) if w) or "the base"


def _print(report: SweepReport, command: str) -> None:
    names = report.adapters

    def row(title: str, one: Measured) -> list[str]:
        check = "-" if one.check_loss is None else f"{one.check_loss:.4f}"
        return [title, f"{one.loss:.4f}", check, weight_words(names, one.weights)]

    rows = [row("base", report.base), *(row(name, one) for name, one in zip(names, report.alone, strict=True))]
    rows += [row("all equally", report.equal)] if report.equal is not None else []
    rows.append(row("best found", report.best))
    output.say(f"{report.tries} sets of weights measured, method {report.method}; loss in nats per trained token.")
    output.say()
    output.table(["", f"SEARCHED ON ({report.rows})", f"OTHERS ({report.check_rows})", ""], rows, right=(1, 2))
    output.say()
    output.say(verdict(report))
    output.say(f"Next: {command}")


def next_words(asked: Asked, report: SweepReport, arguments: argparse.Namespace) -> str:
    """The command that writes the mix as it was measured; in words where no adapter has a part in it."""
    mixed = [f"{one.word}={w:g}" for one, w in zip(asked.adapters, report.best.weights, strict=True) if w]
    if not mixed:
        return "nothing to write: no set of weights was better than the base alone."
    defaults = {"method": "exact", "density": 0.5, "signs": "total", "rank": 0, "seed": 17, "base": ""}
    told = {name: getattr(arguments, name) for name in defaults}
    more = [word for name, usual in defaults.items() if told[name] != usual for word in (f"--{name}", str(told[name]))]
    return shlex.join(["scaler-wizard", "adapters", "mix", *mixed, *more, "--out", "DIR"])


# ── score ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def score(arguments: argparse.Namespace) -> int:
    """Measure one mix beside base and adapters; with --json-lines answer wishes on standard input. Raises
    EngineError."""
    if not arguments.json_lines:  # a wish brings its own method
        check_rank(arguments)
    asked = asked_of(arguments)
    command = [sys.executable, "-m", _MODULE, *asked.words(arguments)]
    if arguments.json_lines:
        output.flush()
        os.execv(command[0], command)
    wishes = _wishes(asked, arguments)
    sent = b"".join(msgspec.json.encode(wish) + b"\n" for _, wish in wishes)
    if not arguments.json:
        output.note("Loading base and adapters ...")
    losses = _answers(command, wishes, sent)
    if arguments.json:
        output.emit_json({name: loss for (name, _), loss in zip(wishes, losses, strict=True)})
        return int(ExitCode.DONE)
    rows = [[name, f"{loss:.4f}"] for (name, _), loss in zip(wishes, losses, strict=True)]
    output.table(["", "LOSS"], rows, right=(1,))
    return int(ExitCode.DONE)


def _wishes(asked: Asked, arguments: argparse.Namespace) -> list[tuple[str, Any]]:
    from engine.jobs.mix_lines import AskedMix
    from engine.jobs.spec_mix import MixMethod, MixSection, Signs

    mix = MixSection(
        method=MixMethod(arguments.method),
        density=arguments.density,
        signs=Signs(arguments.signs),
        rank=arguments.rank,
    )
    count = len(asked.adapters)
    found = [("base", AskedMix(id=0, weights=(0.0,) * count))]
    for place, one in enumerate(asked.adapters):
        weights = tuple(float(place == other) for other in range(count))
        found.append((one.name, AskedMix(id=place + 1, weights=weights)))
    weights = tuple(one.weight for one in asked.adapters)
    found.append(("mix", AskedMix(id=count + 1, weights=weights, mix=mix, seed=arguments.seed)))
    return found


def _answers(command: Sequence[str], wishes: Sequence[tuple[str, Any]], sent: bytes) -> list[float]:
    """The losses in order; each wish is sent when the one before is answered, for a newer one makes it stale."""
    from engine.jobs.mix_lines import Refused, Scored, Scorer, decode_line

    lines = iter(sent.splitlines(keepends=True))
    losses: list[float] = []
    told = b""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for raw in process.stdout:
            line: Line | None = decode_line(raw)
            if isinstance(line, Refused):
                process.kill()
                raise EngineError("adapter.mix", line.what, next_step=line.next_step)
            if isinstance(line, Scored):
                losses.append(line.loss)
            told = raw if line is None else told
            if isinstance(line, Scorer | Scored):
                wish = next(lines, None)
                process.stdin.write(wish) if wish is not None else process.stdin.close()
                process.stdin.flush() if wish is not None else None
    if len(losses) != len(wishes):
        raise _failure(told, process.returncode)
    return losses


def _failure(raw: bytes, code: int) -> EngineError:
    try:
        told = msgspec.json.decode(raw)["error"]
        texts = {name: str(told.get(name, "")) for name in ("code", "what", "cause", "next_step")}
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        texts = {"code": "adapter.score_failed", "what": f"The scoring process ended with code {code}."}
    exit_code = ExitCode(code) if code in set(ExitCode) and code else ExitCode.RUN_FAILED
    return EngineError(
        texts["code"], texts["what"], cause=texts.get("cause", ""), next_step=texts.get("next_step", ""),
        exit_code=exit_code,
    )  # fmt: skip
