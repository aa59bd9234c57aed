"""A GGUF file of floats in a smaller type, by llama.cpp's own quantiser in a process of its own.

Owns the process, the room on disk and the output's name. Must not know how the quantiser works; what it needs to be
told and says is `quantise_worker`'s, a script for the Python that has llama-cpp-python.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.errors import EngineError, ExitCode
from engine.export.imatrix import Importance, read_imatrix
from engine.export.one_file import Partial, check_target, no_room, whole_file
from engine.export.runtime import find_runtime, why_none, without_tokens

KINDS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""What llama.cpp makes here, largest first."""
OnProgress = Callable[[int, int], None]
"""Bytes of the source that are done, and of all of it."""
_WORKER = Path(__file__).with_name("quantise_worker.py")
_MARGIN_BYTES = 1 << 20
"""The quantiser gives sizes in hundredths of a MiB, and none of the file's head, which is the source's."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """A matrix whose rows do not fill whole blocks, and is therefore kept in a larger type."""

    name: str
    row_width: int
    stored: str


@dataclass(frozen=True, slots=True)
class QuantisedFile:
    """What was made."""

    path: Path
    size_bytes: int
    kind: str
    quantiser: str
    """ "llama.cpp (0.3.36)": the version of llama-cpp-python."""
    imatrix: bool
    fallbacks: tuple[Fallback, ...]


def quantise(
    source_gguf: Path,
    out: Path,
    kind: str,
    imatrix: Path | None = None,
    on_progress: OnProgress | None = None,
    *,
    force: bool = False,
) -> QuantisedFile:
    """Make `out` of the floats in `source_gguf`: `kind` is q8_0, q6_k, q5_k_m or q4_k_m. `imatrix` is a file of
    llama.cpp's llama-imatrix; nothing here can compute one.

    Raises EngineError `export.no_quantiser` without llama-cpp-python, `export.source`, `export.imatrix`,
    `export.exists`, `disk.full`, `export.quantiser` with what llama.cpp said. `out` appears when it is complete.
    """
    _check(source_gguf, out, kind, force=force)
    runtime = find_runtime()
    if runtime is None:
        raise EngineError(
            "export.no_quantiser",
            f"{kind} is made by llama.cpp's quantiser, which is not here.",
            cause=why_none(),
            next_step="pip install 'scaler-wizard[gguf]', or take f16, bf16 or q8_0, which are written without it.",
        )
    importance = read_imatrix(imatrix) if imatrix else ()
    source_bytes = source_gguf.stat().st_size
    with (
        whole_file(out, 0, force=force) as partial,
        _worker(runtime.python, source_gguf, partial, kind, importance) as worker,
    ):
        plan = worker.answer()
        needed_bytes = int(plan["size_bytes"]) + _head_bytes(source_gguf) + _MARGIN_BYTES
        if missing := no_room(out, needed_bytes):
            raise missing
        worker.go()
        _follow(worker, partial, out, needed_bytes, lambda done: on_progress and on_progress(done, source_bytes))
    types: dict[str, str] = plan["types"]
    fallbacks = tuple(Fallback(name, width, types.get(name, "")) for name, width in plan["narrow"].items())
    quantiser = f"llama.cpp ({plan['version']})"
    return QuantisedFile(out, out.stat().st_size, kind, quantiser, bool(importance), fallbacks)


def _check(source_gguf: Path, out: Path, kind: str, *, force: bool) -> None:
    if kind not in KINDS:
        raise EngineError("export.type", f"'{kind}' is not made here.", next_step=f"Take one of {', '.join(KINDS)}.")
    try:
        with source_gguf.open("rb") as file:
            whole = file.read(4) == b"GGUF"
    except OSError as error:
        raise EngineError("export.source", f"Cannot read {source_gguf}.", cause=error.strerror or str(error)) from error
    if not whole:
        raise EngineError(
            "export.source", f"{source_gguf} is no GGUF file.", next_step="Write one first: scaler-wizard export gguf."
        )
    check_target(out, force=force)


def _head_bytes(source_gguf: Path) -> int:
    """Keys and tokens, which are copied."""
    from gguf import GGUFReader

    return int(GGUFReader(source_gguf).data_offset)


class _Worker:
    """The process, and what it says."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process, self._log = process, log
        self.failure = ""

    def answer(self) -> dict[str, Any]:
        """The plan. Raises EngineError `export.quantiser`."""
        for line in self.lines():
            if "size_bytes" in line:
                return line
        raise self.failed()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says until it ends, or fails."""
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line: dict[str, Any] = json.loads(text)
            if "failed" in line:
                self.failure = str(line["failed"])
                return
            yield line

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def failed(self) -> EngineError:
        """The caller raises it."""
        code = self._process.wait()
        self._log.seek(0)
        said = self.failure or (self._log.read().strip().splitlines() or [""])[-1]
        return EngineError(
            "export.quantiser",
            "llama.cpp's quantiser gave up.",
            cause=(said or f"It ended with exit code {code}.")[:400],
            next_step="Take f16, bf16 or q8_0, which are written without it.",
            exit_code=ExitCode.RUN_FAILED,
        )


@contextmanager
def _worker(
    python: str, source_gguf: Path, partial: Partial, kind: str, importance: tuple[Importance, ...]
) -> Iterator[_Worker]:
    with tempfile.TemporaryDirectory(prefix="scaler-quantise-") as folder, tempfile.TemporaryFile("w+") as log:
        order = Path(folder) / "order.json"
        values = Path(folder) / "importance"
        if importance:
            values.write_bytes(b"".join(np.ascontiguousarray(one.values, "<f4").tobytes() for one in importance))
        matrix = {"values": str(values), "entries": [[one.name, int(one.values.size)] for one in importance]}
        order.write_text(
            json.dumps({
                "source": str(source_gguf.resolve()), "out": str(partial.path.resolve()), "kind": kind,
                "imatrix": matrix if importance else None,
            })
        )  # fmt: skip
        process = subprocess.Popen(
            [python, str(_WORKER), str(order)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, pass_fds=(partial.handle,),
            env=without_tokens(),
        )  # fmt: skip
        try:
            yield _Worker(process, log)
        finally:
            process.kill()
            process.communicate()


def _follow(worker: _Worker, partial: Partial, out: Path, needed_bytes: int, report: Callable[[int], object]) -> None:
    for line in worker.lines():
        if line.get("finished"):
            return
        report(int(line["done_bytes"]))
    left_bytes = needed_bytes - _MARGIN_BYTES - partial.path.stat().st_size
    raise no_room(out, left_bytes) or worker.failed()
