"""A tiny random Llama with a real tokenizer and chat template, a small data set, and runs of the real worker."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from engine.train.environment import prepare_process
from tests.support.forked_workers import ForkedWorkers, forked_workers
from tests.train.spawn import worker_command, worker_environment

prepare_process(None)  # the worker's own rules, before anything here imports torch

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
WORDS = ("amber", "birch", "cobalt", "dune", "ember", "fjord", "grove", "heron", "iris", "juniper")


def chat(number: int) -> dict[str, Any]:
    """A row that can be learned: the answer is the word in capitals, once to three times; lengths differ."""
    word = WORDS[number % len(WORDS)]
    filler = " please" * (number % 4)
    return {
        "messages": [
            {"role": "user", "content": f"Say {word} number {number}{filler}"},
            {"role": "assistant", "content": " ".join([word.upper()] * (1 + number % 3))},
        ]
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_tokenizer(folder: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers in bfloat16, as a plain Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    build_tokenizer(folder, [json.dumps(chat(number)) for number in range(50)])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # larger than the default start, so that answers differ from prompt to prompt
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl, heldout.jsonl and base.txt."""
    folder = tmp_path_factory.mktemp("tiny-data")
    write_jsonl(folder / "train.jsonl", [chat(number) for number in range(48)])
    write_jsonl(folder / "heldout.jsonl", [chat(number) for number in range(100, 110)])
    (folder / "base.txt").write_text("The heron stood at the fjord.\n\nA grove of birch and juniper.\n")
    return folder


@pytest.fixture(scope="session")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of many lengths for the tiny model, some longer than four of its windows."""
    draw = random.Random(7)
    path = tmp_path_factory.mktemp("long-text") / "text.jsonl"
    rows = [{"text": " ".join(draw.choice(WORDS) for _ in range(20 + 37 * (number % 9)))} for number in range(36)]
    return write_jsonl(path, rows)


SpecMaker = Callable[..., JobSpec]


@pytest.fixture
def make_spec(tiny_model: Path, tiny_data: Path) -> SpecMaker:
    """A QLoRA spec on the tiny model; keyword arguments are sections to change: training={"epochs": 2}."""

    def make(task: str = "qlora", **sections: dict[str, Any]) -> JobSpec:
        tree: dict[str, Any] = {
            "task": task,
            "model": {"source": str(tiny_model)},
            "data": {
                "train": str(tiny_data / "train.jsonl"),
                "heldout": str(tiny_data / "heldout.jsonl"),
                "base_text": str(tiny_data / "base.txt"),
                "max_length": 64,
            },
            "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "training": {"max_steps": 6, "batch_size": 2, "learning_rate": 1e-2, "threads": 1},
            "evaluation": {"max_new_tokens": 8},
            "checkpoint": {"every_steps": 3},
        }
        for name, changes in sections.items():
            tree.setdefault(name, {}).update(changes)
        return msgspec.convert(tree, JobSpec)

    return make


@dataclass(frozen=True)
class Finished:
    """A worker that has ended."""

    run_dir: Path
    exit_code: int

    @property
    def events(self) -> list[Any]:
        return JournalTail(self.run_dir).read_new()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def end(self) -> ev.End:
        ends = self.of(ev.End)
        assert ends, (self.run_dir / layout.WORKER_LOG).read_text()[-3000:]
        last: ev.End = ends[-1]
        return last

    @property
    def log(self) -> str:
        return (self.run_dir / layout.WORKER_LOG).read_text()


RunWorker = Callable[..., Finished]


@pytest.fixture(scope="session")
def workers() -> Iterator[ForkedWorkers]:
    """Real workers without their imports' time."""
    with forked_workers() as found:
        yield found


@pytest.fixture
def run_worker() -> RunWorker:
    """Run the real worker process on a spec or on a run directory, to its end."""

    def run(spec_or_dir: JobSpec | Path, *, preamble: str = "", timeout_seconds: float = 180) -> Finished:
        run_dir = spec_or_dir if isinstance(spec_or_dir, Path) else create_run(spec_or_dir)
        done = subprocess.run(
            worker_command(run_dir, preamble),
            env=worker_environment(),
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.stdout == b"", "what libraries print belongs into worker.log"
        assert done.stderr == b""
        return Finished(run_dir, done.returncode)

    return run
