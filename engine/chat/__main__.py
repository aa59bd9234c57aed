"""`python -m engine.chat`: models and adapters in memory, questions in and answers out as JSON lines.

Owns the process: standard input and output, the thread that listens while an answer is under way, the exit code. The
lines are `engine.jobs.chat_lines`. It ends when its standard input does (answers under way end where they are), or when
nobody reads its output any more; an `EngineError` that ends it is one {"error": {...}} line. What libraries print goes
to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import BinaryIO

import msgspec

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.jobs.chat_lines import Ask, News, Open, Request, Show, Stop, decode_request, encode


class Requests:
    """What the front end says, read in a thread so that a stop is heard at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._queue: queue.Queue[Request | EngineError | None] = queue.Queue()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._asked = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="requests", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stopped(self) -> bool:
        """Whether the answers under way are to end: by a stop, or because who asked is gone."""
        return self._stopping.is_set() or self._ended.is_set()

    def next(self) -> Request | None:
        """The next request; None when there will be none. Raises EngineError `chat.line` for one that is no request."""
        found = self._queue.get()
        if isinstance(found, EngineError):
            raise found
        return found

    def done(self) -> None:
        """An `Ask` was answered: a later stop is for the next one."""
        with self._lock:
            self._asked -= 1
            if not self._asked:
                self._stopping.clear()

    def _read(self) -> None:
        for line in self._stream:
            if line.strip():
                self._take(line)
        self._ended.set()
        self._queue.put(None)

    def _take(self, line: bytes) -> None:
        try:
            request = decode_request(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._queue.put(EngineError("chat.line", "A line is no request of a chat.", cause=str(error)))
            return
        with self._lock:
            if isinstance(request, Stop):
                if self._asked:
                    self._stopping.set()
                return
            self._asked += isinstance(request, Ask)
            self._queue.put(request)


class Out:
    """Standard output for lines alone; a reader that is gone ends the process."""

    def __init__(self) -> None:
        # Libraries print; what they print must not stand between lines.
        self._handle = os.dup(1)
        os.dup2(2, 1)

    def tell(self, news: News) -> None:
        """One line, at once."""
        self._write(encode(news))

    def error(self, error: EngineError) -> None:
        """The last line."""
        self._write(json.dumps({"error": error.as_dict()}).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._handle, line) :]


def main() -> int:
    """Serve until nothing more is asked; returns the exit code."""
    for name, value in helper_process.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the front end's to understand
    # Not sys.stdin: the interpreter takes its lock when it ends, and the thread may be waiting inside it.
    out, requests = Out(), Requests(os.fdopen(os.dup(0), "rb"))
    requests.start()
    try:
        _serve(requests, out)
    except BrokenPipeError:
        return int(ExitCode.DONE)
    except EngineError as error:
        out.error(error)
        return int(error.exit_code)
    return int(ExitCode.DONE)


def _serve(requests: Requests, out: Out) -> None:
    first = requests.next()
    if not isinstance(first, Open):
        if first is None:
            return
        raise EngineError("chat.line", "The first line must open the chat.")
    from engine.train.environment import choose_threads, prepare_process

    prepare_process(None)
    from engine.chat.service import ChatService
    from engine.jobs.spec import Dtype
    from engine.train.environment import prepare_torch, quiet_libraries

    device = prepare_torch(choose_threads(first.threads), Dtype.AUTO)
    quiet_libraries()
    service = ChatService(device, out.tell, requests.stopped)
    service.open(first)
    while (request := requests.next()) is not None:
        if isinstance(request, Ask):
            service.ask(request)
            requests.done()
        elif isinstance(request, Show):
            service.show(request)


if __name__ == "__main__":
    sys.exit(main())
