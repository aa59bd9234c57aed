"""One configuration run for real with random weights: memory and step times, in a process of its own.

`python -m engine.rehearsal.measure` reads an Order as JSON from stdin and writes a Measurement to stdout; an error is
an object with the key `error` and exit code 2. Owns the process: environment, device, the turn at the device. Must not
know what is compared with what.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError, ExitCode
from engine.estimate.rehearsal import Rehearsal
from engine.hardware import nvidia
from engine.rehearsal.orders import Order
from engine.train.environment import PROBE_SECONDS, prepare_process


def main() -> int:
    """Entry point."""
    answer_to = _keep_stdout()
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
        answer: Any = _carry_out(order)
        code = 0
    except EngineError as error:
        answer, code = {"error": error.as_dict()}, int(ExitCode.BAD_INPUT)
    except Exception as error:  # whatever a library raises is an answer too
        lines = str(error).splitlines() or [""]
        failure = EngineError(
            "measure.failed",
            "This configuration could not be run.",
            cause=f"{type(error).__name__}: {lines[0][:300]}",
            next_step="See the error's text; the other configurations are not affected.",
        )
        answer, code = {"error": failure.as_dict()}, int(ExitCode.BAD_INPUT)
    with os.fdopen(answer_to, "wb") as out:
        out.write(msgspec.json.encode(answer))
    return code


def _keep_stdout() -> int:
    """A handle on stdout for the answer alone; whatever libraries print goes to stderr."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


def _carry_out(order: Order) -> Any:
    if not order.expandable:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:False"
    prepare_process(None)
    before = _used_before() if order.alone and order.device != "cpu" else 0
    warnings.simplefilter("ignore")
    import torch
    import transformers

    from engine.rehearsal.trial import measure

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    device = torch.device(_device(order.device, has_cuda=torch.cuda.is_available()))
    _import_ahead(order.rehearsal)
    with turn(order.lock):
        return measure(order, device, before)


def _used_before() -> int:
    """Bytes in use on the visible card, read before any library touches it; 0 without one."""
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    for card in nvidia.probe(PROBE_SECONDS).gpus:
        if name == str(card.index):
            return card.vram_bytes - card.free_vram_bytes
    return 0


def _device(wanted: str, *, has_cuda: bool) -> str:
    """Raises EngineError `measure.device`."""
    if wanted not in ("auto", "cuda", "cpu"):
        raise EngineError("measure.device", f"There is no device '{wanted[:40]}'.", next_step="Say auto, cuda or cpu.")
    if wanted == "cuda" and not has_cuda:
        raise EngineError(
            "measure.device", "No CUDA device can be used here.", next_step="Say cpu, or see: scaler-wizard doctor"
        )
    return ("cuda:0" if has_cuda else "cpu") if wanted == "auto" else {"cuda": "cuda:0"}.get(wanted, wanted)


def _import_ahead(rehearsal: Rehearsal) -> None:
    """Import what the model needs before the device is ours: it takes seconds of processor time only."""
    import importlib

    kind = str(rehearsal.config.get("model_type", "")).removesuffix("_text")
    names = [f"transformers.models.{kind}.modeling_{kind}"]
    names += ["peft"] if rehearsal.method == "adapter" else []
    names += ["bitsandbytes"] if "8-bit" in rehearsal.optimizer else []
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


@contextlib.contextmanager
def turn(path: str) -> Iterator[None]:
    """Hold the file at `path` for as long as the device is used; without a path nothing is waited for."""
    if not path:
        yield
        return
    import fcntl

    with Path(path).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        _give_back()


def _give_back() -> None:
    """The next process must find the memory free."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
