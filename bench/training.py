"""How fast the worker's path trains: against plain Trainer + peft on the same batches, and packed against padded.

Run with `python -m bench.training`. Both sides run in this process, on the same base weights, batches, optimizer,
number of threads and device, in alternating blocks, so that whatever else the machine does hits both. Ratios are of
processor time on a CPU (a busy machine hardly changes it; waiting threads sleep) and of wall time on a card.
Prints one JSON object: tokens per second of either side, by the wall clock, and the ratios.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.train.environment import choose_threads, prepare_process, prepare_torch, quiet_libraries, seed_everything

prepare_process(None)

import msgspec  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from engine.data.load import prepare  # noqa: E402
from engine.data.packing import PackedSequence, pack, pad, unpacked  # noqa: E402
from engine.jobs.spec import DataSection, Dtype, JobSpec  # noqa: E402
from engine.train.batches import SequenceDataset  # noqa: E402
from engine.train.environment import Device  # noqa: E402
from engine.train.model import add_adapter, base_request, load_base, ready  # noqa: E402
from engine.train.trainer import TokenTrainer, training_arguments  # noqa: E402

STEPS = 12
WARM_STEPS = 2
ROUNDS = 4
BATCH = 4
ROWS = 240


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of all steps but the first ones."""

    wall: float
    cpu: float

    def cost(self, device: Device) -> float:
        """What ratios are made of."""
        return self.wall if device.is_cuda else self.cpu


class Clock(TrainerCallback):
    """Times the steps after the first `WARM_STEPS`; logs every step like the worker does."""

    def __init__(self) -> None:
        self._steps = 0
        self._began = (0.0, 0.0)
        self.spent = Spent(0.0, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = (time.perf_counter(), time.process_time())
        self._steps += 1
        if self._steps <= WARM_STEPS:
            self._began = now
        self.spent = Spent(now[0] - self._began[0], now[1] - self._began[1])


def plain_collator(pad_id: int, *, packed: bool) -> Callable[[Sequence[PackedSequence]], dict[str, Any]]:
    """What transformers' own collators give: labels as long as the input, and a mask where rows are padded."""

    def collate(sequences: Sequence[PackedSequence]) -> dict[str, Any]:
        batch = pad(sequences, pad_id)
        tensors = {"input_ids": torch.tensor(batch.input_ids), "labels": torch.tensor(batch.labels)}
        if packed:
            return tensors | {"position_ids": torch.tensor(batch.position_ids)}
        width = tensors["input_ids"].shape[1]
        lengths = torch.tensor([[len(sequence.input_ids)] for sequence in sequences])
        return tensors | {"attention_mask": (torch.arange(width) < lengths).long()}

    return collate


class Bench:
    """One model folder and one data set, trained in several ways."""

    def __init__(self, spec: JobSpec, folder: Path, device: Device) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        self.data = prepare(spec.data, folder)

    def _model(self) -> tuple[Any, Any]:
        base = load_base(base_request(self.spec, self.folder, self.device))
        seed_everything(self.spec.training.seed)
        return base, add_adapter(base, self.spec.adapter, gradient_checkpointing=False)

    def ours(self, sequences: Sequence[PackedSequence]) -> Spent:
        """The worker's trainer."""
        base, model = self._model()
        loaded = ready(model, base, self.data.tokenizer, self.device)
        with tempfile.TemporaryDirectory() as folder:
            arguments = training_arguments(self.spec, Path(folder), loaded)
            return self._timed(TokenTrainer(loaded, SequenceDataset(sequences), arguments, self.spec.training))

    def plain(self, sequences: Sequence[PackedSequence], *, packed: bool, batch: int = BATCH) -> Spent:
        """transformers' Trainer with peft and its own loss, otherwise with our arguments."""
        base, model = self._model()
        with tempfile.TemporaryDirectory() as folder:
            loaded = ready(model, base, self.data.tokenizer, self.device)
            training = msgspec.structs.replace(self.spec.training, batch_size=batch)
            spec = msgspec.structs.replace(self.spec, training=training)
            arguments: TrainingArguments = training_arguments(spec, Path(folder), loaded)
            collator = plain_collator(loaded.pad_id, packed=packed)
            trainer = Trainer(model=model, args=arguments, train_dataset=list(sequences), data_collator=collator)
            return self._timed(trainer)

    @staticmethod
    def _timed(trainer: Trainer) -> Spent:
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        return clock.spent


def quietest(runs: Sequence[Spent]) -> Spent:
    """The least of the rounds: other programs only ever add to what a step takes."""
    return Spent(min(run.wall for run in runs), min(run.cpu for run in runs))


def make_folder(target: Path, source: Path) -> Path:
    """The demo's tokenizer with a random model of its shape, for a checkout whose demo is not built."""
    import shutil

    from engine.train.output import copy_tokenizer

    if (source / "model.safetensors").is_file():
        shutil.copytree(source, target, dirs_exist_ok=True)
        return target
    copy_tokenizer(source, target)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    return target


def short_rows(path: Path) -> Path:
    """Chat rows of mixed length, most of them short: what packing is for."""
    rows = []
    for number in range(400):
        long = number % 8 == 0
        question = f"What is {number} plus {number + 1}?" + " Tell me in many words, and take your time." * (6 * long)
        answer = f"The sum is {2 * number + 1}." + " So it is, and so it stays." * (5 * long)
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_figures() -> dict[str, Any]:
    """All figures."""
    from engine.resources import demo_model_dir

    quiet_libraries()
    device = prepare_torch(choose_threads(0), Dtype.AUTO)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "model").mkdir()
        folder = make_folder(scratch / "model", demo_model_dir())
        section = DataSection(train=str(short_rows(scratch / "rows.jsonl")), heldout="", base_text="", max_length=256)
        tree: dict[str, Any] = {"training": {"max_steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-3}}
        spec = msgspec.structs.replace(msgspec.convert(tree, JobSpec), data=section)
        return measure(Bench(spec, folder, device))


def measure(bench: Bench) -> dict[str, Any]:
    """Alternate the three ways for some rounds. The padded one gets as many rows into a step as the packed one, so both
    see the same rows in the same number of steps; what it pads is what packing saves."""
    rows = bench.data.train[:ROWS]
    packed = pack(rows, 256)
    rows_per_batch = round(BATCH * len(rows) / len(packed))
    runs: dict[str, list[Spent]] = {"ours": [], "plain": [], "padded": []}
    ways: dict[str, Callable[[], Spent]] = {
        "ours": lambda: bench.ours(packed),
        "plain": lambda: bench.plain(packed, packed=True),
        "padded": lambda: bench.plain(unpacked(rows), packed=False, batch=rows_per_batch),
    }
    bench.ours(packed)  # not counted: the first of a process pays for everybody
    for turn in range(ROUNDS):
        for name in sorted(ways, reverse=turn % 2 == 1):  # nobody is always first
            runs[name].append(ways[name]())
    spent = {name: quietest(found) for name, found in runs.items()}
    cost = {name: found.cost(bench.device) for name, found in spent.items()}
    share = (STEPS - WARM_STEPS) * BATCH / len(packed)  # of an epoch that is timed; the same for all three
    tokens = share * sum(len(row.input_ids) for row in rows)
    trained = share * sum(row.trained_tokens for row in rows)
    return {
        "device": bench.device.name,
        "worker_tokens_per_second": round(tokens / spent["ours"].wall, 1),
        "plain_trainer_tokens_per_second": round(tokens / spent["plain"].wall, 1),
        "worker_over_plain_trainer": round(cost["plain"] / cost["ours"], 3),
        "packed_trained_tokens_per_second": round(trained / spent["ours"].wall, 1),
        "padded_trained_tokens_per_second": round(trained / spent["padded"].wall, 1),
        "packed_over_padded": round(cost["padded"] / cost["ours"], 2),
        "plain_packed_over_padded": round(cost["padded"] / cost["plain"], 2),
    }


def main() -> None:
    """Measure and print."""
    sys.stdout.write(json.dumps(all_figures(), indent=2) + "\n")


if __name__ == "__main__":
    main()
