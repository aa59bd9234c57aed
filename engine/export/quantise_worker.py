"""llama.cpp's own quantiser, in the Python that has llama-cpp-python. A script, for that Python may have nothing else:

    python quantise_worker.py ORDER.json

Owns that process and its lines. The order says source, out, kind and an importance matrix. It answers one line of JSON
with the sizes and types to come, waits for a line on its input, and then quantises with a line per tensor. When its
input ends, whoever asked is gone, and so is it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
from typing import Any

KINDS = {"q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""llama.cpp's file types."""
MIB = 1 << 20
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+)")
_SIZES = re.compile(r"size = +([\d.]+) MiB(?: -> +([\d.]+) MiB)?(?: \((\S+)\))?")
_TOTAL = re.compile(r"quant size += +([\d.]+) MiB")
_FALLBACK = re.compile(r"warning: (\S+) +- ncols +(\d+) not divisible by +(\d+)")


class Heard:
    """What llama.cpp's log says, tensor by tensor."""

    def __init__(self, *, tell: bool) -> None:
        self._tell = tell
        self._text = self._name = ""
        self.types: dict[str, str] = {}
        self.narrow: dict[str, int] = {}
        self.size_mib = 0.0
        self.last_error = ""
        self.listener: Any = None
        self._done_mib = 0.0

    def hear(self, level: int, text: str) -> None:
        """A piece of the log: lines come in pieces."""
        self._text += text
        while "\n" in self._text:
            line, self._text = self._text.split("\n", 1)
            self._line(line)
            if level >= 4 and line.strip():
                self.last_error = line.strip()

    def _line(self, line: str) -> None:
        for name, columns, _ in _FALLBACK.findall(line):
            self.narrow[name] = int(columns)
        named, sizes, total = _TENSOR.search(line), _SIZES.search(line), _TOTAL.search(line)
        if named:
            self._name = named[3]
        if sizes and not total and self._name:
            self.types[self._name] = sizes[3] or ""
            self._done_mib += float(sizes[1])
            if self._tell:
                say({"done_bytes": round(self._done_mib * MIB)})
        if total:
            self.size_mib = float(total[1])


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def importance(llama: Any, order: dict[str, Any]) -> Any:
    """The matrix as llama.cpp takes it: a list of names and floats that ends with an empty name; None without one."""
    if not order["imatrix"]:
        return None
    with open(order["imatrix"]["values"], "rb") as file:
        held = bytearray(file.read())
    entries = order["imatrix"]["entries"]
    listed = (llama.llama_model_imatrix_data * (len(entries) + 1))()
    begin = 0
    for place, (name, count) in zip(listed, entries, strict=False):
        values = (ctypes.c_float * count).from_buffer(held, begin)
        place.name, place.size = name.encode(), count
        place.data = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        begin += 4 * count
    listed.held = held
    return listed


def quantise(llama: Any, order: dict[str, Any], *, dry: bool) -> Heard:
    """One pass over the model; a dry one computes sizes and types only. Raises SystemExit with what llama.cpp said."""
    heard = Heard(tell=not dry)

    def listen(level: int, text: bytes, _: Any) -> None:
        heard.hear(level, text.decode("utf-8", "replace"))

    heard.listener = llama.llama_log_callback(listen)  # llama.cpp calls it as long as this process lives
    llama.llama_log_set(heard.listener, ctypes.c_void_p(0))
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = KINDS[order["kind"]]
    parameters.nthread = max(1, len(os.sched_getaffinity(0)))
    parameters.dry_run = dry
    matrix = importance(llama, order)
    if matrix is not None:
        parameters.imatrix = ctypes.cast(matrix, ctypes.POINTER(llama.llama_model_imatrix_data))
    code = llama.llama_model_quantize(order["source"].encode(), order["out"].encode(), ctypes.byref(parameters))
    if code:
        say({"failed": heard.last_error or f"llama_model_quantize ended with {code}"})
        raise SystemExit(1)
    return heard


def leave_with_the_asker() -> None:
    """Runs beside the work."""
    while sys.stdin.readline():
        pass
    os._exit(3)


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        order = json.load(file)
    import llama_cpp

    llama_cpp.llama_backend_init()
    plan = quantise(llama_cpp, order, dry=True)
    say({
        "version": llama_cpp.__version__,
        "size_bytes": round(plan.size_mib * MIB),
        "types": plan.types,
        "narrow": plan.narrow,
    })  # fmt: skip
    if not sys.stdin.readline():
        raise SystemExit(3)
    threading.Thread(target=leave_with_the_asker, daemon=True).start()
    quantise(llama_cpp, order, dry=False)
    say({"finished": True})


if __name__ == "__main__":
    main(sys.argv[1])
