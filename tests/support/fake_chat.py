"""A chat's process without a model: the same lines, answers made of the prompt, for tests of screens and lines.

Run as a program. A side whose folder is called "refused" is refused; the prompt "wait" is answered until a stop comes,
"crash" ends the process by a kill, "long" fills the window. Everything else is answered with the side's name and the
prompt, word by word, and the number of turns and the seed it was given.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from pathlib import Path

from engine.jobs.chat_lines import (
    AllAnswered,
    Answered,
    Ask,
    Failed,
    Loading,
    News,
    Open,
    Piece,
    Problem,
    Ready,
    Request,
    Sent,
    Show,
    SideFacts,
    SideReady,
    SideRefused,
    Stop,
    Turn,
    decode_request,
    encode,
)

PROGRAM = (sys.executable, "-m", "tests.support.fake_chat")


def tell(news: News) -> None:
    sys.stdout.buffer.write(encode(news))
    sys.stdout.flush()


def open_all(request: Open) -> None:
    for number, side in enumerate(request.sides):
        tell(Loading(words=f"loading {side.name}", done=number, total=len(request.sides)))
        if Path(side.folder).name == "refused":
            problem = Problem(
                code="chat.no_room", what="It does not fit.", cause="9 GB, 1 free.", next_step="Ask less."
            )
            tell(SideRefused(side=number, problem=problem))
            continue
        facts = SideFacts(
            template="{{ turns }}", template_origin="chat_template.jinja", template_is_default=False, window=256,
            stop_tokens=("<|im_end|>",), weights="float32", notes=side.notes,
        )  # fmt: skip
        tell(SideReady(side=number, facts=facts))
    tell(Ready(device="a fake", seconds=1.0))


def sent(ask: int, number: int, turns: tuple[Turn, ...]) -> None:
    text = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    special = ("<|im_start|>", "<|im_end|>")
    tell(Sent(ask=ask, side=number, text=text, tokens=len(text.split()), special=special))


def answer(request: Ask, number: int, turns: tuple[Turn, ...], name: str, stopped: threading.Event) -> None:
    prompt = turns[-1].content
    sent(request.ask, number, turns)
    if prompt == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if prompt == "long":
        problem = Problem(code="chat.window", what="The conversation fills the window.", next_step="Clear it.")
        tell(Failed(ask=request.ask, side=number, problem=problem))
        return
    words = f"{name} heard {prompt} in turn {len(turns)} with seed {request.sampling.seed}".split(" ")
    text = ""
    for count, word in enumerate(words, start=1):
        piece = f" {word}" if text else word
        text += piece
        tell(Piece(ask=request.ask, side=number, text=piece, tokens=count))
    if prompt == "wait":
        stopped.wait()
    tell(
        Answered(
            ask=request.ask, side=number, text=text, tokens=len(words), prompt_tokens=7,
            ended="stopped" if stopped.is_set() else "end", seconds=0.5,
        )
    )  # fmt: skip


def main() -> None:
    stopped = threading.Event()
    requests: queue.Queue[Request | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            request = decode_request(line)
            if isinstance(request, Stop):
                stopped.set()
            else:
                requests.put(request)
        requests.put(None)

    threading.Thread(target=listen, daemon=True).start()
    names: list[str] = []
    while (request := requests.get()) is not None:
        if isinstance(request, Open):
            names = [side.name for side in request.sides]
            open_all(request)
        elif isinstance(request, Show):
            for number, turns in enumerate(request.turns):
                if turns:
                    sent(request.ask, number, turns)
        elif isinstance(request, Ask):
            for number, turns in enumerate(request.turns):
                if turns:
                    answer(request, number, turns, names[number], stopped)
            stopped.clear()
            tell(AllAnswered(ask=request.ask))


if __name__ == "__main__":
    main()
