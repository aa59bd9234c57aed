"""The dry run: two steps of the very model and recipe on fake tensors, storages followed through both.

`python -m engine.rehearsal.dry_run` reads a Rehearsal as JSON from stdin and writes a DryRun to stdout. Owns the order
of a step and the straight line from shallow models to the real depth. Must not know machines; no memory is used.

The peak of a step is the largest of a few moments, each a straight line in the number of layers: while the loss is
computed, while the top layer or the bottom layer goes backward, at the end of backward, in the optimizer. Two shallow
models (two and three periods of the layer pattern) give each line.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.errors import EngineError, ExitCode
from engine.estimate.rehearsal import DryRun, Moment, Rehearsal
from engine.evaluation.head import SelectiveHead, summed_loss
from engine.rehearsal import build
from engine.rehearsal.tracker import Tracker

STRETCHES = ("forward", "loss", "top layer", "bottom layer", "end of backward", "step")


def dry_run(rehearsal: Rehearsal, *, detail: dict[str, Any] | None = None, full_depth: bool = False) -> DryRun:
    """Allocated bytes at the peak of the second step. Raises EngineError `rehearsal.*`."""
    began = time.perf_counter()
    config = build.config_of(rehearsal)
    real = int(config.num_hidden_layers)
    depths = _depths(config, rehearsal, real)
    if full_depth or depths[-1] >= real:
        depths = (real,)
    runs = [_moments(rehearsal, depth, real, detail) for depth in depths]
    moments = tuple(_line(stretch, depths, runs, real) for stretch in runs[0])
    top = max(moments, key=lambda moment: moment.total)
    return DryRun(
        total=top.total,
        stretch=top.stretch,
        kinds=top.kinds,
        moments=moments,
        depths=depths,
        seconds=time.perf_counter() - began,
        versions={"torch": str(torch.__version__), "transformers": _version("transformers"), "peft": _version("peft")},
    )


def _version(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)


def _depths(config: Any, rehearsal: Rehearsal, real: int) -> tuple[int, ...]:
    """Two shallow depths that keep the layer pattern and the share of new blocks."""
    period = max(_period(getattr(config, "layer_types", None)), _period(getattr(config, "no_rope_layers", None)))
    if rehearsal.new_layers:
        every = real / rehearsal.new_layers
        if every != int(every):
            return (real,)
        period = max(period, int(every))
    return (2 * period, 3 * period)


def _period(pattern: Any) -> int:
    """Length of the shortest repeated piece of a per-layer list; 1 without a list."""
    if not pattern:
        return 1
    values = list(pattern)
    for length in range(1, len(values)):
        if all(values[index] == values[index % length] for index in range(len(values))):
            return length
    return len(values)


def _line(stretch: str, depths: tuple[int, ...], runs: list[dict[str, Moment]], real: int) -> Moment:
    if len(runs) == 1:
        return runs[0][stretch]
    first, second = runs[0][stretch], runs[1][stretch]

    def at(a: float, b: float) -> float:
        return a + (b - a) * (real - depths[0]) / (depths[1] - depths[0])

    kinds = sorted({*first.kinds, *second.kinds})
    return Moment(
        stretch=stretch,
        total=at(first.total, second.total),
        kinds={kind: at(first.kinds.get(kind, 0.0), second.kinds.get(kind, 0.0)) for kind in kinds},
    )


def _moments(rehearsal: Rehearsal, depth: int, real: int, detail: dict[str, Any] | None) -> dict[str, Moment]:
    """The largest moment of each stretch of the second step of a model with `depth` layers."""
    if rehearsal.new_layers and depth != real:
        rehearsal = msgspec.structs.replace(rehearsal, new_layers=max(rehearsal.new_layers * depth // real, 1))
    config = build.config_of(rehearsal, depth)
    tracker = Tracker(vocabulary=int(config.vocab_size))
    if detail is not None:
        tracker.detail = detail
    with warnings.catch_warnings(), torch.random.fork_rng(), _short_collections():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            model, base = build.build_model(rehearsal, config)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake, build.masks(rehearsal.masked), build.as_on_a_card(), build.host_memory():
            _make_fake(model)
            _count_state(model, tracker)
            head = SelectiveHead(base, compares=False)  # fake logits have no values to compare
            with tracker:
                inputs = build.make_inputs(rehearsal, "cpu", int(config.vocab_size))
                if rehearsal.evaluate:
                    _forward_only(model, head, rehearsal, inputs, tracker)
                else:
                    _train(model, base, head, rehearsal, inputs, tracker)
    return {
        stretch: Moment(stretch=stretch, total=float(total), kinds={kind: float(size) for kind, size in kinds.items()})
        for stretch, (total, kinds) in tracker.peaks.items()
        if stretch in STRETCHES
    }


@contextlib.contextmanager
def _short_collections() -> Iterator[None]:
    """The collector looks only at what was made inside: the libraries' own objects take it half a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _make_fake(model: nn.Module) -> None:
    """Every meta parameter and buffer becomes a fake tensor; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                new = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                for attribute in ("compress_statistics", "quant_type"):
                    if hasattr(parameter, attribute):
                        setattr(new, attribute, getattr(parameter, attribute))
                made[id(parameter)] = new
            module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is None:
                continue
            if id(buffer) not in made:
                made[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
            module._buffers[name] = made[id(buffer)]


def _count_state(model: nn.Module, tracker: Tracker) -> None:
    adapter = [p for name, p in model.named_parameters() if "lora_" in name]
    known = {id(parameter) for parameter in adapter}
    tracker.adopt(adapter, "adapter")
    tracker.adopt((p for p in model.parameters() if id(p) not in known), "weights")
    tracker.adopt(model.buffers(), "weights")


def _forward_only(
    model: Any, head: SelectiveHead, rehearsal: Rehearsal, inputs: dict[str, Tensor], tracker: Tracker
) -> None:
    tracker.stretch = "forward"
    with torch.no_grad():
        logits, targets = build.evaluation_logits(model, head, rehearsal, inputs)
    tracker.stretch = "loss"
    summed_loss(logits, targets)


def _train(
    model: Any, base: Any, head: SelectiveHead, rehearsal: Rehearsal, inputs: dict[str, Tensor], tracker: Tracker
) -> None:
    """Two optimizer steps; only the second is kept, since the first has no optimizer state before its end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, rehearsal)
    _watch_gradients(parameters, tracker)
    _watch_layers(base, tracker)
    for number in range(2):
        if number == 1:
            tracker.peaks.clear()
        for _ in range(rehearsal.accumulation if number else 1):  # one is enough to make the optimizer's state
            tracker.kind, tracker.stretch = "activations", "forward"
            loss, _kept = build.step_loss(model, head, rehearsal, inputs)
            tracker.kind = "temporary buffers"
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, _kept
        tracker.stretch = "step"
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        tracker.kind = "optimizer" if number == 0 else "temporary buffers"
        optimizer.step()
        tracker.stretch = "between"
        optimizer.zero_grad(set_to_none=True)


def _watch_gradients(parameters: list[nn.Parameter], tracker: Tracker) -> None:
    def became(parameter: Tensor) -> None:
        if parameter.grad is not None:
            tracker.rename(parameter.grad, "gradients")

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(became)  # type: ignore[no-untyped-call]


def _watch_layers(base: Any, tracker: Tracker) -> None:
    """Name the stretches: what follows the last layer forward is loss, then the top layer goes backward, and so on."""
    layers = build.decoder_layers(base)
    last = len(layers) - 1

    def hook(index: int) -> Any:
        def forward_done(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if tracker.kind != "activations":
                return  # a recomputation during backward
            if index == last:
                tracker.stretch = "loss"
            if hidden.requires_grad:
                hidden.register_hook(lambda _gradient: _enter(index))

        return forward_done

    def _enter(index: int) -> None:
        gc.collect()  # frames of an aborted recomputation wait in a cycle for the collector, by chance short or long
        tracker.stretch = "top layer" if index == last else "bottom layer" if index == 0 else "middle"

    for index, layer in enumerate(layers):
        layer.register_forward_hook(hook(index))
    # Gradients of the embedding, and whatever else follows the first layer, count to the bottom layer's stretch.


def _optimizer(parameters: list[nn.Parameter], rehearsal: Rehearsal) -> Any:
    if rehearsal.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3)
    if rehearsal.optimizer == "adamw 8-bit":
        return _EightBit(parameters)
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=rehearsal.foreach, fused=not rehearsal.foreach)


class _EightBit:
    """bitsandbytes' 8-bit AdamW in memory terms: two bytes and block scales per value, in place; small tensors fp32.

    Source: bitsandbytes 0.50 `optim/optimizer.py`, blocks of 256 values, `min_8bit_size` 4096.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.states: list[Tensor] = []

    def step(self) -> None:
        """Make the states once; the update is in place."""
        if self.states:
            return
        for parameter in self.parameters:
            count = parameter.numel()
            kind = torch.float32 if count < 4096 else torch.uint8
            for _ in range(2):
                self.states.append(torch.empty(count, dtype=kind))
                if kind is torch.uint8:
                    self.states.append(torch.empty(-(-count // 256), dtype=torch.float32))

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """As torch's."""
        for parameter in self.parameters:
            parameter.grad = None


def _as_it_is(function: Any = None, **_options: Any) -> Any:
    return (lambda given: given) if function is None else function


def main() -> int:
    """Entry point: JSON in, JSON out; an error is an object with the key `error` and exit code 2."""
    text = sys.stdin.buffer.read()
    # bitsandbytes wraps functions with it, which imports two seconds' worth of compiler.
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        rehearsal = msgspec.json.decode(text, type=Rehearsal)
        answer = dry_run(rehearsal)
    except EngineError as error:
        sys.stdout.buffer.write(msgspec.json.encode({"error": error.as_dict()}))
        return int(ExitCode.BAD_INPUT)
    except Exception as error:
        # Models that look at data cannot be traced; whatever a library raises is an answer too.
        failure = EngineError(
            "rehearsal.untraceable",
            "This model could not be followed on fake tensors.",
            cause=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            next_step="Use the formula's estimate, or the probe, which runs the real model.",
        )
        sys.stdout.buffer.write(msgspec.json.encode({"error": failure.as_dict()}))
        return int(ExitCode.BAD_INPUT)
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
