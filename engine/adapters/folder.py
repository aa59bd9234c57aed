"""An adapter's folder: which matrices it updates, which tensors it replaces, in which rows.

Owns the names peft gives tensors. Must not know a base's weights (`engine.adapters.base`) nor arithmetic. Only
safetensors are read; a pickle can run code.

    base_model.model.<module>.lora_A.weight   (r, I)      .lora_B.weight (O, r)   .lora_B.bias (O,)
    base_model.model.<module>.lora_embedding_A (r, V)     .lora_embedding_B (D, r)
    base_model.model.<module>.lora_magnitude_vector (O,)
    base_model.model.<module>.base_layer.weight           a whole tensor of the base, replaced
    base_model.model.<module>.token_adapter.trainable_tokens_delta (n, D)   rows of it, replaced
    base_model.model.<name>                               a whole tensor of the base, replaced
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from engine.adapters.base import check_base as check_base
from engine.adapters.kinds import AdapterConfig, Start, read_config
from engine.errors import EngineError
from engine.models.folder import PICKLE_SUFFIXES
from engine.models.headers import TensorHeader, read_file_header

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?)$"
)
_ROWS = ".token_adapter.trainable_tokens_delta"
_BASE_LAYER = re.compile(r"\.base_layer(?=\.(?:weight|bias)$)")
_TWICE = re.compile(r"\.(modules_to_save|original_module)(?=\.(?:weight|bias)$)")
"""Of modules that learn as a copy and were resized as well, peft saves both copies beside the one it loads."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """One matrix of the base with its low-rank update. O outputs, I inputs, R rank; of an embedding O is the width and
    I the vocabulary."""

    module: str
    """In the base: "model.layers.0.self_attn.q_proj"."""
    rank: int
    scale: float
    a: TensorHeader  # (R, I)
    b: TensorHeader  # (O, R)
    magnitude: TensorHeader | None = None  # (O,)
    """DoRA's."""
    bias: TensorHeader | None = None  # (O,)
    """Added to the module's output times `scale`."""
    embedding: bool = False
    fan_in_fan_out: bool = False
    start: Start = Start.NONE

    @property
    def weight(self) -> str:
        """The base's tensor."""
        return f"{self.module}.weight"

    @property
    def outputs(self) -> int:
        """O."""
        return self.b.shape[0]

    @property
    def inputs(self) -> int:
        """I."""
        return self.a.shape[1]

    @property
    def transposed(self) -> bool:
        """Whether the base stores this weight as (I, O): embeddings, and GPT-2's layers."""
        return self.embedding or self.fan_in_fan_out

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Of the base's tensor."""
        return (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor of the base that the adapter replaces: modules_to_save, trained biases, resized embeddings."""

    name: str
    """In the base: "lm_head.weight"."""
    tensor: TensorHeader


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an embedding that the adapter replaces. On a base with tied embeddings the head's rows follow."""

    module: str
    indices: tuple[int, ...]
    tensor: TensorHeader  # (n, D)

    @property
    def weight(self) -> str:
        """The base's tensor."""
        return f"{self.module}.weight"


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """Everything in an adapter."""

    path: Path
    config: AdapterConfig
    adapted: tuple[Adapted, ...]
    whole: tuple[Whole, ...]
    rows: tuple[Rows, ...]

    @property
    def weights(self) -> Path:
        """The file of its tensors."""
        return self.path / WEIGHTS

    @property
    def parameters(self) -> int:
        """Stored numbers."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.data_bytes for tensor in self.tensors)

    @property
    def tensors(self) -> tuple[TensorHeader, ...]:
        """All of them."""
        parts = [t for one in self.adapted for t in (one.a, one.b, one.magnitude, one.bias) if t is not None]
        return (*parts, *(one.tensor for one in self.whole), *(one.tensor for one in self.rows))


@dataclass(slots=True)
class _Parts:
    tensors: dict[str, TensorHeader] = field(default_factory=dict)


def read_adapter(folder: Path) -> AdapterFolder:
    """Raises EngineError `adapter.config`, `adapter.kind`, `adapter.pickle`, `adapter.no_weights`, `adapter.damaged`,
    `safetensors.*`."""
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise _no_weights(folder)
    found: dict[str, _Parts] = {}
    whole: list[Whole] = []
    rows: list[Rows] = []
    stored = read_file_header(path)
    names = {tensor.name for tensor in stored}
    for tensor in stored:
        if _TWICE.search(tensor.name) and _TWICE.sub("", tensor.name) in names:
            continue
        if not tensor.name.startswith(PREFIX):
            raise _damaged(folder, f"tensor '{_short(tensor.name)}' does not begin with {PREFIX}")
        name = tensor.name[len(PREFIX) :]
        part = _PART.match(name)
        if part:
            found.setdefault(part["module"], _Parts()).tensors[part["part"].removesuffix(".weight")] = tensor
        elif name.endswith(_ROWS):
            rows.append(_rows(folder, config, name.removesuffix(_ROWS), tensor))
        elif ".lora_" in name or "token_adapter" in name:
            raise _damaged(folder, f"it holds a tensor '{_short(name)}' that plain LoRA and its relatives do not have")
        else:
            whole.append(Whole(_BASE_LAYER.sub("", name), tensor))
    adapted = tuple(_adapted(folder, config, module, parts.tensors) for module, parts in found.items())
    if not adapted and not whole and not rows:
        raise _damaged(folder, "it holds no tensors")
    return AdapterFolder(
        folder,
        config,
        tuple(sorted(adapted, key=lambda one: _natural(one.module))),
        tuple(sorted(whole, key=lambda one: _natural(one.name))),
        tuple(sorted(rows, key=lambda one: _natural(one.module))),
    )


def _adapted(folder: Path, config: AdapterConfig, module: str, parts: dict[str, TensorHeader]) -> Adapted:
    embedding = "lora_embedding_A" in parts
    a = parts.get("lora_embedding_A" if embedding else "lora_A")
    b = parts.get("lora_embedding_B" if embedding else "lora_B")
    if a is None or b is None:
        raise _damaged(folder, f"module '{_short(module)}' has only one of its two factors")
    _check_factors(folder, config, module, a, b)
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("lora_B.bias")
    if config.dora and magnitude is None:
        raise _damaged(folder, f"module '{_short(module)}' has no magnitudes, although the config says use_dora")
    for vector in (magnitude if config.dora else None, bias):
        if vector is not None and vector.elements != b.shape[0]:
            raise _damaged(
                folder, f"tensor '{_short(vector.name)}' has {vector.elements} numbers for {b.shape[0]} outputs"
            )
    return Adapted(
        module=module,
        rank=a.shape[0],
        scale=config.scale_of(module),
        a=a,
        b=b,
        magnitude=magnitude if config.dora else None,
        bias=bias,
        embedding=embedding,
        fan_in_fan_out=config.fan_in_fan_out and not embedding,
        start=Start.NONE if embedding else config.start,
    )


def _check_factors(folder: Path, config: AdapterConfig, module: str, a: TensorHeader, b: TensorHeader) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise EngineError(
            "adapter.kind",
            f"The adapter in {folder} updates '{_short(module)}', which is no matrix.",
            cause=f"Its factors have the shapes {a.shape} and {b.shape}: a convolution or an expert's parameter.",
            next_step="Use it with peft itself.",
        )
    rank = config.rank_of(module)
    if not a.shape[0] == b.shape[1] == rank:
        raise _damaged(
            folder,
            f"module '{_short(module)}' has factors of shapes {a.shape} and {b.shape}, and the config says rank {rank}",
        )
    if not a.elements or not b.elements:
        raise _damaged(folder, f"module '{_short(module)}' has an empty factor; its shards were not gathered")


def _rows(folder: Path, config: AdapterConfig, module: str, tensor: TensorHeader) -> Rows:
    named = [rows for name, rows in config.token_rows if not name or module == name or module.endswith(f".{name}")]
    if len(named) != 1 or len(tensor.shape) != 2 or len(named[0]) != tensor.shape[0]:
        raise _damaged(folder, f"'{_short(tensor.name)}' does not have one row for each of the config's token indices")
    return Rows(module, named[0], tensor)


def _no_weights(folder: Path) -> EngineError:
    names = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in names if name.startswith("adapter") and name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return EngineError(
            "adapter.pickle",
            f"The adapter in {folder} has its weights only as pickle ({pickles[0]}); this is refused.",
            cause="Opening a pickle file can run any code that was hidden in it.",
            next_step="Load it once with peft in a program you trust and save it: save_pretrained writes safetensors.",
        )
    return EngineError(
        "adapter.no_weights",
        f"The adapter in {folder} has no {WEIGHTS}.",
        cause="Only its config is there; a download or a save was interrupted.",
        next_step="Download or copy the folder again.",
    )


def _damaged(folder: Path, how: str) -> EngineError:
    return EngineError(
        "adapter.damaged",
        f"The adapter in {folder} is damaged: {how}.",
        cause="Its config and its tensors do not belong together, or it was saved by something else than peft.",
        next_step="Save the adapter again, or download it again.",
    )


def _short(name: str) -> str:
    return name if len(name) <= 90 else f"{name[:87]}..."


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Layer 10 after layer 9."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in name.split("."))


def last_names(modules: Iterable[str]) -> tuple[str, ...]:
    """The different last parts of module names, sorted: "down_proj", "q_proj"."""
    return tuple(sorted({module.rpartition(".")[2] for module in modules}))
