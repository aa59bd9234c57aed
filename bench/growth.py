"""What growing is worth, measured: the demo model grown in every way, trained on, and held against not growing.

Run with `python -m bench.growth [--seeds N] [--steps N] [--arms "a;b"] [--out FILE]`, an hour on two cores; results are
appended to FILE run by run, so an interrupted benchmark goes on where it stopped. `--report` turns FILE into the table
and the picture of EXPANSION.md.

Base: the embedded demo model. Training text: the demo's fine-tuning rows, three parts a new skill (facts the base
knows, asked for as ledger lines) to one part the old skills. Every arm sees the same batches in the same order (the
seed decides them) and has the same schedule. Old loss is measured on held-out chats of the base's skills, new loss and
exact answers on ledger lines whose facts never appear as such in training; both over answer tokens. Equal tokens are
read at the last step of the shortest arm; equal operations at the last count that every arm has reached, with the
operations of one real step counted by torch. Arms without growth are trained for longer, until they have spent as much.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "assets" / "demo" / "model"
FINETUNE = ROOT / "assets" / "demo" / "finetune"
sys.path.insert(0, str(ROOT / "assets" / "demo"))

WINDOW = 96
WINDOWS = 4
EVALUATE_EVERY = 15
PEAK_RATE = 1e-3
OLD_WINDOWS = 24
OLD_SKILLS = ("facts", "arithmetic", "copy", "patterns")
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to spend the tokens."""

    name: str
    sizes: dict[str, int] = field(default_factory=dict)
    operators: tuple[str, ...] = ()
    rank: int = 0
    """Above 0: LoRA on the base."""
    random: bool = False
    """The grown shape from random weights."""
    rate: float = PEAK_RATE
    """Peak learning rate."""
    new_only: bool = False
    """Old parameters frozen (LLaMA-Pro)."""


WIDE = {"hidden": 256, "ffn": 768, "heads": 8}
DEEP = {"layers": 15}
ARMS = (
    Arm("continue the base"),
    Arm("LoRA, rank 16", rank=16, rate=5e-3),
    Arm("LoRA, rank 128", rank=128, rate=1e-3),
    Arm("random, wide shape", WIDE, random=True),
    Arm("random, deep shape", DEEP, random=True),
    Arm("hidden, pad", {"hidden": 354}),
    Arm("ffn, pad", {"ffn": 1200}),
    Arm("heads, pad", {"heads": 24}),
    Arm("hybrid, pad", WIDE),
    Arm("ffn, LEMON", {"ffn": 1200}, ("lemon",)),
    Arm("tile with noise", {"ffn": 1024, "heads": 12, "kv_heads": 4}, ("tile",)),
    Arm("tile, twins", {"ffn": 1024, "heads": 12, "kv_heads": 4}, ("tile-plain",)),
    Arm("depth, identity", DEEP, ("identity",)),
    Arm("depth, identity, new only", DEEP, ("identity",), new_only=True),
    Arm("depth, aligned averages", DEEP, ("deus",)),
    Arm("depth, LESA", DEEP, ("lesa",)),
    Arm("depth, SOLAR", {"layers": 14}, ("solar",)),
    Arm("depth, stack", {"layers": 16}, ("stack",)),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation."""

    step: int
    old_loss: float
    new_loss: float
    new_right: float
    """Share of the new skill's held-out rows that greedy decoding would answer in full."""


@dataclass(frozen=True, slots=True)
class Result:
    """One arm with one seed."""

    arm: str
    seed: int
    parameters: int
    trained: int
    step_operations: float
    """Floating-point operations of one training step."""
    tokens_per_step: int
    points: tuple[Point, ...]
    seconds: float


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def windows(encoder: Any, chats: Iterator[Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Chats one after the other, cut into windows of `WINDOW` + 1 tokens: ids and targets (answer tokens only)."""
    ids: list[int] = []
    answers: list[bool] = []
    for chat in chats:
        encoded = encoder.encode(chat)
        ids += encoded.ids
        answers += encoded.is_answer
        while len(ids) > WINDOW:
            cut, said = ids[: WINDOW + 1], answers[: WINDOW + 1]
            pairs = zip(cut[1:], said[1:], strict=True)
            yield cut[:-1], [token if is_answer else IGNORED for token, is_answer in pairs]
            ids, answers = ids[WINDOW:], answers[WINDOW:]


def rows_of(name: str) -> list[Any]:
    """Chats of one file of the demo's fine-tuning set."""
    from text_generator import Chat

    lines = (FINETUNE / name).read_text().splitlines()
    return [Chat("facts", tuple(json.loads(line)["messages"])) for line in lines]


def training_chats(seed: int) -> Iterator[Any]:
    """The demo's training rows, shuffled anew in every round, without end."""
    rng = random.Random(seed)
    rows = rows_of("train.jsonl")
    while True:
        rng.shuffle(rows)
        yield from rows


def evaluation_windows(encoder: Any) -> tuple[list[Any], list[Any]]:
    """Windows of the old skills' held-out chats, and the new skill's held-out rows (one chat per row)."""
    old = rows_of("base_text.jsonl")
    random.Random(4).shuffle(old)
    return list(windows(encoder, iter(old)))[:OLD_WINDOWS], [encoder.encode(chat) for chat in rows_of("heldout.jsonl")]


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────
def grown_folder(arm: Arm, seed: int, folder: Path) -> Path:
    """The demo model in float32, grown by the real surgery; the demo itself for an arm that does not grow."""
    import torch
    from transformers import AutoModelForCausalLM

    base = folder / "base"
    if not base.exists():
        AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).save_pretrained(base)
    if not arm.sizes:
        return base
    from engine.expansion.checks import Wish, plan_for
    from engine.expansion.layouts import layout_for
    from engine.surgery.expand import ExpandRequest, expand

    config = json.loads((base / "config.json").read_text())
    checked = plan_for(layout_for(config, "demo"), Wish(**arm.sizes, operators=arm.operators, seed=seed), config)
    out = folder / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
    if not out.exists():
        expand(ExpandRequest(source=base, out=out, plan=checked.plan, proof=False), lambda progress: None)
    return out


def build(arm: Arm, seed: int, folder: Path) -> Any:
    """The model of an arm, ready to train."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = grown_folder(arm, seed, folder)
    torch.manual_seed(seed)
    if arm.random:
        from train_model import initialise

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
        initialise(model)  # the recipe that trained the demo model: the library's default does worse at this width
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if arm.rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=arm.rank, lora_alpha=2 * arm.rank, target_modules="all-linear"))
    if arm.new_only:
        from engine.expansion.certificate import read_certificate

        certificate = read_certificate(path)
        assert certificate is not None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(certificate.tensors[name].new)
    return model


def step_operations(model: Any, ids: Any, targets: Any) -> float:
    """Floating-point operations of one forward and backward, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss_of(model, ids, targets).backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def loss_of(model: Any, ids: Any, targets: Any) -> Any:
    """Mean cross-entropy over answer tokens."""
    import torch

    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────
def run(arm: Arm, seed: int, steps: int, folder: Path, base_operations: float) -> Result:
    """Train one arm with one seed; arms that do not grow go on until they have spent what the largest arm spends."""
    import torch
    from windows import ChatEncoder

    started = time.monotonic()
    encoder = ChatEncoder(DEMO)
    old, new = evaluation_windows(encoder)
    model = build(arm, seed, folder)
    stream = windows(encoder, training_chats(seed))
    first = _batch(stream)
    operations = step_operations(model, *first)
    if not arm.sizes and base_operations:
        steps = math.ceil(steps * base_operations / operations / EVALUATE_EVERY) * EVALUATE_EVERY
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arm.rate, betas=(0.9, 0.97), weight_decay=0.0)
    points = [evaluate(model, 0, old, new)]
    batch = first
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = arm.rate * min(1.0, step / 10)
        loss_of(model, *batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        batch = _batch(stream)
        if step % EVALUATE_EVERY == 0 or step == 5:
            points.append(evaluate(model, step, old, new))
    return Result(
        arm.name,
        seed,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in trained),
        operations,
        WINDOW * WINDOWS,
        tuple(points),
        time.monotonic() - started,
    )


def _batch(stream: Iterator[tuple[list[int], list[int]]]) -> tuple[Any, Any]:
    import torch

    rows = [next(stream) for _ in range(WINDOWS)]
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([targets for _, targets in rows])


def evaluate(model: Any, step: int, old: list[Any], new: list[Any]) -> Point:
    """Old loss over windows, new loss and share of right answers over chats."""
    import torch

    model.eval()
    with torch.no_grad():
        ids, targets = torch.tensor([row for row, _ in old]), torch.tensor([row for _, row in old])
        old_loss = float(loss_of(model, ids, targets))
        longest = max(len(chat.ids) for chat in new)
        padded = torch.tensor([chat.ids + [0] * (longest - len(chat.ids)) for chat in new])
        said = torch.tensor([list(chat.is_answer) + [False] * (longest - len(chat.is_answer)) for chat in new])[:, 1:]
        logits = model(input_ids=padded[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), padded[:, 1:].flatten(), reduction="none")
        new_loss = float(losses.view_as(said)[said].mean())
        right = (logits.argmax(-1) == padded[:, 1:]) | ~said
        share = float(right.all(dim=1).float().mean())
    model.train()
    return Point(step, old_loss, new_loss, share)


def main() -> None:
    """Run what is missing, or report."""
    parser = argparse.ArgumentParser(prog="python -m bench growth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--arms", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "growth.jsonl")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(sys.argv[1:] if Path(sys.argv[0]).name == "growth.py" else [])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.report:
        from bench.growth_report import write_report

        write_report(options.out)
        return
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """Every arm and seed that the file does not have yet, appended as they finish."""
    import torch

    torch.set_num_threads(options.threads)
    done = {(tree["arm"], tree["seed"]) for tree in read_results(options.out)}
    wanted = [arm for arm in ARMS if not options.arms or arm.name in options.arms.split(";")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        largest = 0.0
        for seed in range(1, options.seeds + 1):
            for arm in sorted(wanted, key=lambda arm: not arm.sizes):
                if (arm.name, seed) in done:
                    continue
                largest = largest or largest_operations(folder)
                result = run(arm, seed, options.steps, folder, largest)
                with options.out.open("a") as stream:
                    stream.write(json.dumps(asdict(result)) + "\n")
                print(_line(result), flush=True)


def _line(result: Result) -> str:
    first, last = result.points[0], result.points[-1]
    return (
        f"{result.arm:28} seed {result.seed}  {result.parameters / 1e6:5.2f} M  old {first.old_loss:.3f} -> "
        f"{last.old_loss:.3f}  new {first.new_loss:.3f} -> {last.new_loss:.3f}  right {last.new_right:.2f}  "
        f"{result.seconds:.0f} s"
    )


def largest_operations(folder: Path) -> float:
    """Operations of a step of the hybrid arm, which the arms without growth are given in all."""
    from windows import ChatEncoder

    hybrid = next(arm for arm in ARMS if arm.name == "hybrid, pad")
    stream = windows(ChatEncoder(DEMO), training_chats(1))
    return step_operations(build(hybrid, 1, folder), *_batch(stream))


def read_results(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


if __name__ == "__main__":
    main()
