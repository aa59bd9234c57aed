"""A causal model that is larger than memory: its own forward pass, with the weights of one decoder layer at a time.

Owns when weights are there: a layer's while it runs, the embedding's rows that the text uses, the head in pieces of
the vocabulary. Must not know families: masks, positions, caches and scalings are the model's own code.

    ids ─► embedding (used rows) ─► layer 0 (load, run, release) ─► ... ─► norm ─► head (piece by piece) ─► logits

Gradients flow the same way back: a layer is loaded again, run again with gradients, and released.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.proof import skeleton
from engine.proof.weights import Replacement, StoredTensors

HEAD_BYTES_AT_ONCE = 256 << 20

LayerDone = Callable[[int, int], None]
"""(layers done, layers in all)."""


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
        head = self.model.get_output_embeddings().weight
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
                self.embedding_name = name if parameter is embedding else self.embedding_name
                self.head_name = name if parameter is head else self.head_name
            else:
                resident.append(name)
        self.places.load(self.tensors.lazily(resident), self.dtype)
        self._require_all(embedding, head)

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
        lacking = [n for n, p in layer.named_parameters() if p.device.type == "meta"]
        if lacking:
            raise skeleton.does_not_fit(self.model, [f"{self.layer_path}.{index}.{n}" for n in lacking], "is missing")
        try:
            yield layer
        finally:
            skeleton.release(layer)

    def _layer_forward(self, index: int) -> Callable[..., Any]:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            with self.layer(index):
                result = self._runs[index](hidden, *args, **kwargs)
            self.layer_done(index + 1, len(self.layers))
            return result

        return forward

    def _stream_embedding(self) -> None:
        module = self.model.get_input_embeddings()
        module.padding_idx = None

        def choose_rows(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
            used, positions = arguments[0].unique(return_inverse=True)
            rows = [self.tensors.rows(self.embedding_name, number, number + 1) for number in used.tolist()]
            module.weight = nn.Parameter(torch.cat(rows).to(self.dtype), requires_grad=False)
            return (positions,)

        module.register_forward_pre_hook(choose_rows)

    def _stream_head(self) -> None:
        head = self.model.get_output_embeddings()

        def forward(hidden: Tensor) -> Tensor:
            size, width = self.tensors.shape(self.head_name)
            logits = torch.empty(*hidden.shape[:-1], size, dtype=hidden.dtype)  # (B, L, V)
            step = max(HEAD_BYTES_AT_ONCE // (width * logits.element_size()), 1)
            for begin in range(0, size, step):
                end = min(begin + step, size)
                rows = self.tensors.rows(self.head_name, begin, end).to(self.dtype)
                bias = None if head.bias is None else head.bias[begin:end]
                logits[..., begin:end] = nn.functional.linear(hidden, rows, bias)
            return logits

        head.forward = forward
