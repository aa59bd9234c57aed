"""Models and adapters in memory: every base is loaded once, adapters change under it.

Owns loading, which weights are shared, and which adapter is active. Must not know prompts or lines.

    Slot (one base, one quantisation) ──► side "base"      adapters switched off
                                     ├──► side "adapter A"  A active
                                     └──► side "adapter B"  B active

An adapter that changes tensors of the base itself (trained biases, PiSSA and its kin, which take a part out of the base
as they are loaded) cannot share: it gets a slot of its own, memory permitting.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from engine.adapters.base import check_base
from engine.adapters.folder import AdapterFolder, read_adapter
from engine.adapters.kinds import Bias, Start
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError, ExitCode
from engine.evaluation.head import SelectiveHead
from engine.evaluation.loading import check_memory, weight_bytes
from engine.evaluation.model import LoadedModel
from engine.jobs.chat_lines import SideOrder
from engine.models.folder import check_folder
from engine.models.headers import read_headers
from engine.models.weights import EMBEDDING_NAMES, HEAD_NAMES
from engine.train.environment import Device
from engine.train.model import BaseRequest, load_base

_TOKENIZER = "tokenizer.json"
_CHANGES_BASE = ("corda", "loftq", "pissa", "olora")
"""Ways to start an adapter that peft carries out again on the base when the adapter is loaded."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How an adapter goes onto its base."""

    shares: bool = True
    """Whether the base is the same with this adapter loaded and switched off."""
    vocabulary: int = 0
    """Rows of the embeddings it was trained with, where the base has fewer."""
    updates: frozenset[str] = frozenset()
    """Modules that it adds something to."""
    replaces: frozenset[str] = frozenset()
    """Modules that it has a whole copy of."""

    def collides(self, other: Fit) -> bool:
        """Whether peft cannot hold both on one model: one updates what the other replaces."""
        return bool(self.updates & other.replaces or self.replaces & other.updates)


@dataclass(slots=True)
class Slot:
    """One base in memory."""

    loaded: LoadedModel
    base: Any
    """transformers' model, without peft around it."""
    adapters: dict[str, Fit] = field(default_factory=dict)

    def make_room(self, vocabulary: int) -> None:
        """Embeddings for so many tokens, where an adapter brings more than the base has; 0 for as they are."""
        if vocabulary:
            self.base.resize_token_embeddings(vocabulary)

    def add(self, folder: Path, name: str, fit: Fit) -> None:
        """Load an adapter beside those there are. Raises EngineError `chat.adapter`."""
        try:
            if self.adapters:
                self.loaded.model.load_adapter(str(folder), adapter_name=name, torch_device=self.loaded.device)
            else:
                self.loaded = replace(self.loaded, model=_with_adapter(self.base, folder, name, self.loaded.device))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            if "out of memory" in str(error):
                raise
            raise EngineError(
                "chat.adapter",
                f"The adapter in {folder} cannot be put on its base.",
                cause=" ".join(str(error).split())[:300],
                next_step="Name the right base with --base.",
                exit_code=ExitCode.BAD_INPUT,
            ) from error
        self.loaded.model.eval().requires_grad_(False)
        # peft may have put the output head into a module of its own: the hook belongs on the outermost one.
        self.loaded = replace(self.loaded, head=SelectiveHead(self.base))
        self.adapters[name] = fit

    @contextlib.contextmanager
    def as_side(self, adapter: str) -> Iterator[LoadedModel]:
        """The model with this adapter alone, or "" for none, ready to be asked."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.loaded.inference())
            if adapter:
                if self.loaded.model.active_adapter != adapter:
                    self.loaded.model.set_adapter(adapter)
            else:
                stack.enter_context(self.loaded.base_only())
            yield self.loaded


@dataclass(frozen=True, slots=True)
class Side:
    """One that can be asked."""

    order: SideOrder
    slot: Slot
    adapter: str
    """The adapter's name in the slot; "" for the base itself."""
    tokenizer: ChatTokenizer
    tokenizer_folder: Path
    notes: tuple[str, ...] = ()

    def opened(self) -> contextlib.AbstractContextManager[LoadedModel]:
        """Its model, as `Slot.as_side`."""
        return self.slot.as_side(self.adapter)


class Sides:
    """All sides of a chat; `add` them one after the other."""

    def __init__(self, device: Device, dtype: str = "auto") -> None:
        """`dtype`: "auto", "float32", "bfloat16", "float16"; auto is the device's, and half of it where the weights do
        not fit otherwise."""
        self.device = device
        self.sides: dict[int, Side] = {}
        self._dtype = dtype
        self._slots: dict[tuple[str, ...], Slot] = {}

    def add(self, number: int, order: SideOrder) -> Side:
        """Load what is missing for it. Raises EngineError `model.*`, `adapter.*`, `chat.*`, `evaluation.memory`."""
        folder = Path(order.folder)
        fit = Fit() if not order.base else fit_of(folder, Path(order.base))
        # An adapter that was tuned with tokens or a template of its own brings them.
        place = folder if (folder / _TOKENIZER).is_file() or not order.base else Path(order.base)
        tokenizer = ChatTokenizer.load(place)
        slot, why_own = self._place(order, fit, number)
        name = f"side{number}" if order.base else ""
        try:
            if name:
                slot.make_room(fit.vocabulary)
                slot.add(folder, name, fit)
        except EngineError:
            self._drop_if_idle(slot)
            raise
        notes = (f"{why_own}, so it has a copy of its own",) if why_own else ()
        self.sides[number] = Side(order, slot, name, tokenizer, place, notes)
        return self.sides[number]

    def _place(self, order: SideOrder, fit: Fit, number: int) -> tuple[Slot, str]:
        """(the base in memory for it, why that is one of its own or "")."""
        if not fit.shares:
            return self._slot(order, number), "it changes its base as it is loaded"
        slot = self._slot(order, None)
        if any(fit.collides(other) for other in slot.adapters.values()):
            return self._slot(order, number), "it replaces what another adapter adds to"
        return slot, ""

    def drop(self, number: int) -> None:
        """A side that is no longer needed; its weights too, where no other side stands on them."""
        side = self.sides.pop(number)
        shares = any(one.slot is side.slot for one in self.sides.values())
        if not shares and side.notes:  # a base as it is may be wanted by the next side
            side.slot.adapters.clear()
            self._drop_if_idle(side.slot)

    def weights_words(self, side: Side) -> str:
        """ "bfloat16", "nf4, computing in float32"."""
        dtype = str(side.slot.loaded.compute_dtype).removeprefix("torch.")
        kind = side.order.quantization
        return dtype if kind == "none" else f"{kind}, computing in {dtype}"

    def shares(self, side: Side) -> bool:
        """Whether another side stands on the same weights."""
        return sum(one.slot is side.slot for one in self.sides.values()) > 1

    def _slot(self, order: SideOrder, own: int | None) -> Slot:
        folder = Path(order.model)
        key = (str(folder.resolve()), order.quantization, str(order.double_quantization), str(own))
        if key not in self._slots:
            check_folder(folder)
            self._slots[key] = self._load(folder, order)
        return self._slots[key]

    def _load(self, folder: Path, order: SideOrder) -> Slot:
        device = self.device.torch_device
        dtype = self._number_type(folder, order.quantization)
        try:
            check_memory(folder, dtype, order.quantization, device)
        except EngineError as error:
            if not self._slots:
                raise
            raise EngineError(
                "chat.no_room",
                f"{order.name} does not fit into memory beside the model that is loaded.",
                cause=error.cause,
                next_step="Talk to it alone, compare adapters of one base, or load smaller: --quantization nf4.",
                exit_code=ExitCode.DOES_NOT_FIT,
            ) from error
        kind = order.quantization
        base = load_base(BaseRequest(folder, kind, order.double_quantization, dtype, device))
        base.eval()
        tokenizer = ChatTokenizer.load(folder)
        return Slot(LoadedModel(base, SelectiveHead(base), tokenizer, device, dtype), base)

    def _number_type(self, folder: Path, quantization: str) -> torch.dtype:
        if self._dtype != "auto":
            found: torch.dtype = getattr(torch, self._dtype)
            return found
        usual = self.device.compute_dtype
        if usual is torch.float32 and quantization == "none":
            needed, free = weight_bytes(folder, usual, quantization, self.device.torch_device)
            if needed > free:
                return torch.bfloat16
        return usual

    def _drop_if_idle(self, slot: Slot) -> None:
        """A base that was loaded for an adapter that did not fit."""
        if slot.adapters or any(side.slot is slot for side in self.sides.values()):
            return
        self._slots = {key: one for key, one in self._slots.items() if one is not slot}
        gc.collect()
        if self.device.is_cuda:
            torch.cuda.empty_cache()


def _with_adapter(base: Any, folder: Path, name: str, device: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder), adapter_name=name, torch_device=device)


def fit_of(folder: Path, base: Path) -> Fit:
    """Raises EngineError `adapter.*` for pickles, damage, unknown kinds, and an adapter of another base."""
    adapter = read_adapter(folder)
    check_base(adapter, base)
    vocabulary = _more_tokens(adapter, base)
    config = adapter.config
    changes = config.bias is not Bias.NONE or config.start is not Start.NONE or config.init.startswith(_CHANGES_BASE)
    return Fit(
        shares=not (changes or adapter.rows or vocabulary),
        vocabulary=vocabulary,
        updates=frozenset(one.module for one in adapter.adapted),
        replaces=frozenset(one.name.rpartition(".")[0] for one in adapter.whole),
    )


def _more_tokens(adapter: AdapterFolder, base: Path) -> int:
    names = (*EMBEDDING_NAMES, *HEAD_NAMES)
    rows = max((one.tensor.shape[0] for one in adapter.whole if one.name.endswith(names)), default=0)
    there = max((t.shape[0] for t in read_headers(base).tensors if t.name.endswith(EMBEDDING_NAMES)), default=0)
    return rows if rows > there else 0
