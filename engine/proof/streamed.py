"""A causal model that is larger than memory: its own forward pass, with the weights of one decoder layer at a time.

Owns when weights are there: a layer's while it runs, the embedding's rows that the text uses, the head in pieces of
the vocabulary. Must not know families: masks, positions, caches and scalings are the model's own code.

    ids ─► embedding (used rows) ─► layer 0 (load, run, release) ─► ... ─► norm ─► head (piece by piece) ─► logits

Gradients flow the same way back: a layer is loaded again, run again with gradients, and released.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.proof import skeleton
from engine.proof.weights import Replacement, StoredTensors

HEAD_BYTES_AT_ONCE = 256 << 20

LayerDone = Callable[[int, int], None]
"""(layers done, layers in all)."""
GradientsReady = Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor]], None]
"""(layer, `RESIDENT` or `HEAD`; values; gradients), both by parameter name."""
RESIDENT, HEAD = -1, -2


class StreamedModel:
    """`model` is transformers' own class and is called like any other; a context manager that holds files open."""

    def __init__(self, folder: Path, dtype: torch.dtype, replacement: Replacement | None = None) -> None:
        """Raises EngineError `proof.*` and `safetensors.*`."""
        self.dtype = dtype
        self.tensors = StoredTensors(folder, replacement)
        self.model = skeleton.empty_model(folder, dtype)
        self.places = skeleton.Places(self.model)
        self.layer_path, self.layers = skeleton.decoder_layers(self.model)
        self.layer_done: LayerDone = lambda _done, _total: None
        self._runs = [layer.forward for layer in self.layers]
        self.layer_names: dict[int, list[str]] = defaultdict(list)
        self.embedding_name = self.head_name = ""
        """Stored names."""
        self.embedding_place = self.head_place = ""
        """Parameter names."""
        self.on_gradients: GradientsReady | None = None
        self._changes: dict[str, Tensor] = {}
        self._used = torch.zeros(0, dtype=torch.long)
        """(U,) ids of the last text: the rows that the embedding holds."""
        self._sort_names()
        for index, layer in enumerate(self.layers):
            layer.forward = self._layer_forward(index)
        self._stream_embedding()
        self._stream_head()

    def __enter__(self) -> StreamedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.tensors.close()

    def _sort_names(self) -> None:
        """Give every stored tensor its time to be loaded; what belongs to no layer stays in memory."""
        embedding = self.model.get_input_embeddings().weight
        head = self._output_head().weight
        resident = []
        for name in self.tensors.headers:
            place = self.places.parameter_of(name)
            if place is None:
                continue
            layer = self._layer_of(place)
            parameter = None if layer is not None else self.model.get_parameter_or_buffer(place)
            if layer is not None:
                self.layer_names[layer].append(name)
            elif parameter is embedding or parameter is head:
                self._note_vocabulary(name, place, parameter is embedding, parameter is head)
            else:
                resident.append(name)
        self.places.load(self.tensors.lazily(resident), self.dtype)
        self._require_all(embedding, head)

    def _output_head(self) -> Any:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise skeleton.cannot_stream(self.model, "a linear output head")
        return head

    def _note_vocabulary(self, name: str, place: str, embeds: bool, reads_out: bool) -> None:
        if embeds:
            self.embedding_name, self.embedding_place = name, place
        if reads_out:
            self.head_name, self.head_place = name, place

    def _layer_of(self, place: str) -> int | None:
        if not place.startswith(f"{self.layer_path}."):
            return None
        return int(place[len(self.layer_path) + 1 :].split(".")[0])

    def _require_all(self, embedding: Tensor, head: Tensor) -> None:
        """Raises EngineError `proof.load` when something that belongs to no layer is not in the files."""
        missing = [
            name
            for name, parameter in self.model.named_parameters()
            if self._layer_of(name) is None
            and parameter.device.type == "meta"
            and parameter is not embedding
            and parameter is not head
        ]
        missing += [] if self.embedding_name else ["the embedding"]
        missing += [] if self.head_name else ["the output head"]
        if missing:
            raise skeleton.does_not_fit(self.model, missing, "is missing")

    @contextlib.contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights, for as long as the block runs."""
        layer = self.layers[index]
        self.places.load(self.tensors.lazily(self.layer_names[index]), self.dtype)
        parameters = self._parameters_of(index)
        lacking = [name for name, parameter in parameters.items() if parameter.device.type == "meta"]
        if lacking:
            raise skeleton.does_not_fit(self.model, lacking, "is missing")
        with torch.no_grad():
            for name in parameters.keys() & self._changes.keys():
                parameters[name].add_(self._changes[name])
        try:
            yield layer
        finally:
            skeleton.release(layer)

    def _parameters_of(self, index: int) -> dict[str, nn.Parameter]:
        return {f"{self.layer_path}.{index}.{name}": p for name, p in self.layers[index].named_parameters()}

    def _layer_forward(self, index: int) -> Callable[..., Any]:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            call = partial(self.run_layer, index, args=args, kwargs=kwargs)
            if torch.is_grad_enabled() and hidden.requires_grad:
                return RunAgain.apply(hidden, call)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                return call(hidden)

        return forward

    def run_layer(
        self, index: int, hidden: Tensor, gradient: Tensor | None = None, *, args: Any = (), kwargs: Any = None
    ) -> Any:
        """A layer's output for `hidden`; with the `gradient` of the output, the one of `hidden` instead."""
        with self.layer(index):
            output = self._runs[index](hidden, *args, **(kwargs or {}))
            if gradient is None:
                self.layer_done(index + 1, len(self.layers))
                return output
            torch.autograd.backward(output[0] if isinstance(output, tuple) else output, gradient)
            self._hand_on(index, self._parameters_of(index))
            self.layer_done(len(self.layers) - index, len(self.layers))
            return hidden.grad

    def _hand_on(self, layer: int, parameters: Mapping[str, nn.Parameter]) -> None:
        if self.on_gradients is not None:
            values = {name: parameter.detach() for name, parameter in parameters.items()}
            gradients = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.detach() for name, p in parameters.items()
            }
            self.on_gradients(layer, values, gradients)

    @contextlib.contextmanager
    def gradients(self, ready: GradientsReady) -> Iterator[None]:
        """Within the block a backward pass hands the gradients of the model to `ready`, layer by layer, last first.

        The head's come first, in pieces of the vocabulary; what belongs to no layer follows when the block ends: the
        embedding's used rows, norms, biases.
        """
        self.on_gradients = ready
        resident = self._resident()
        for parameter in resident.values():
            parameter.requires_grad_(True)
        try:
            yield
            self._hand_on(RESIDENT, self._resident())
        finally:
            self.on_gradients = None
            for parameter in self._resident().values():
                parameter.grad = None
                parameter.requires_grad_(False)

    def _resident(self) -> dict[str, nn.Parameter]:
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if self._layer_of(name) is None and parameter.device.type != "meta"
        }

    def adjust(self, changes: Mapping[str, Tensor]) -> None:
        """Add `changes` (by parameter name) to the weights from now on, on top of earlier ones."""
        for name, change in changes.items():
            self._changes[name] = self._changes[name] + change if name in self._changes else change
        resident = self._resident()
        with torch.no_grad():
            for name in resident.keys() & changes.keys():
                if name != self.embedding_place:
                    resident[name].add_(changes[name])

    def _stream_embedding(self) -> None:
        module = self.model.get_input_embeddings()
        module.padding_idx = None

        def choose_rows(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
            used, positions = torch.unique(arguments[0], return_inverse=True)
            rows = torch.cat([self.tensors.rows(self.embedding_name, n, n + 1) for n in used.tolist()]).to(self.dtype)
            change = self._changes.get(self.embedding_place)
            if change is not None:
                rows = rows + change
            self._used = used
            module.weight = nn.Parameter(rows, requires_grad=torch.is_grad_enabled())
            return (positions,)

        module.register_forward_pre_hook(choose_rows)

    def _stream_head(self) -> None:
        head = self.model.get_output_embeddings()

        def forward(hidden: Tensor) -> Tensor:
            if torch.is_grad_enabled() and hidden.requires_grad:
                logits: Tensor = RunAgain.apply(hidden, partial(self._head, head))  # type: ignore[no-untyped-call]
                return logits
            with torch.no_grad():
                return self._head(head, hidden)

        head.forward = forward

    def _head(self, head: Any, hidden: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Logits piece by piece; with their `gradient`, the one of `hidden` instead."""
        size, width = self.tensors.shape(self.head_name)
        result = torch.zeros_like(hidden) if gradient is not None else hidden.new_empty(*hidden.shape[:-1], size)
        step = max(HEAD_BYTES_AT_ONCE // (width * hidden.element_size()), 1)
        for begin in range(0, size, step):
            piece = slice(begin, min(begin + step, size))
            rows = self._head_rows(piece)
            if gradient is None:
                bias = None if head.bias is None else head.bias[piece]
                result[..., piece] = nn.functional.linear(hidden, rows, bias)  # (B, L, v)
                continue
            upstream = gradient[..., piece].detach()  # (B, L, v)
            result += upstream @ rows
            if head.bias is not None and head.bias.requires_grad:
                head.bias.grad = torch.zeros_like(head.bias) if head.bias.grad is None else head.bias.grad
                head.bias.grad[piece] += upstream.flatten(0, -2).sum(0)
            if self.on_gradients is not None:
                weight = upstream.flatten(0, -2).T @ hidden.detach().flatten(0, -2)  # (v, D)
                self.on_gradients(HEAD, {self.head_place: rows}, {self.head_place: weight})
        return result

    def _head_rows(self, piece: slice) -> Tensor:
        """Rows of the head, (v, D); of a tied one with the changes that the embedding has."""
        rows = self.tensors.rows(self.head_name, piece.start, piece.stop).to(self.dtype)
        change = self._changes.get(self.embedding_place)
        if change is not None and self.head_place == self.embedding_place:
            here = (self._used >= piece.start) & (self._used < piece.stop)
            rows = rows.index_add(0, self._used[here] - piece.start, change[here])
        return rows


class RunAgain(torch.autograd.Function):
    """A part of the model that is run without gradients, and once more with them when they are needed.

    The call gives the output for a hidden state, or the hidden state's gradient for the output's.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, call: Callable[..., Any]) -> Any:
        ctx.call = call
        ctx.save_for_backward(hidden)
        return call(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        hidden = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            return ctx.call(hidden, upstream[0]), None
