"""How ranks exchange what they have computed: copies of the model (DistributedDataParallel), or shards (FSDP2).

Owns wrapping a loaded model and the order of communication. Must not know jobs or the loop. Losses are sums over the
tokens of all ranks / their number, and both engines average gradients over ranks, so each rank's loss is taken times
the number of ranks. Gradients are exchanged once per step, with the last micro-batch.

Sharding: one unit per decoder layer, one for the rest (embeddings, final norm, head), which stays gathered between its
forward and backward pass. Weights in 4 bits are sharded as the bytes they are packed in. `peft` calls the base model's
`forward` and passes its hooks by, so that call is led back to the model itself.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from engine.distributed.company import Answers, Company, Word


class Parallel:
    """A model on several ranks."""

    def __init__(self, company: Company, model: Any, base: Any, *, device: str, dtype: torch.dtype) -> None:
        """`model` is what is called, `base` or a PeftModel around it."""
        self.company = company
        self.model = model
        self.base = base
        self.device = device
        self.dtype = dtype
        self.called: Any = model
        """What a training step calls."""

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch of a step."""
        raise NotImplementedError

    def go(self) -> None:
        """The leader has worked alone, and what comes next is done by all; every rank calls this."""
        if self.company.leads:
            self.company.go()
        else:
            self.company.follow(self.answers())

    def more_learns(self) -> None:
        """Other parameters learn from here on than before; every rank calls this."""

    def answers(self) -> Answers:
        """What a follower does while the leader works alone."""
        return {}

    def whole(self) -> dict[str, Tensor] | None:
        """On the leader, while it works alone: what learns by its name, whole, on the CPU; None where the model holds
        it so anyway."""
        return None


class Copies(Parallel):
    """DistributedDataParallel: every rank has the whole model."""

    def __init__(self, company: Company, model: Any, base: Any, *, device: str, dtype: torch.dtype) -> None:
        super().__init__(company, model, base, device=device, dtype=dtype)
        self._wrap()

    def more_learns(self) -> None:
        self._wrap()

    def _wrap(self) -> None:
        """Buckets are made for the parameters that learn now."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                dist.broadcast(parameter.data, src=0)
        self.called = DistributedDataParallel(
            self.model,
            forward_sync_buffers=False,
            init_sync=False,  # only what learns can differ, and 4-bit weights are no tensors to broadcast
            find_unused_parameters=_may_be_unused(self.base),
        )

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients stay here until the last micro-batch."""
        context: AbstractContextManager[Any] = contextlib.nullcontext() if last else self.called.no_sync()
        return context


class Shards(Parallel):
    """FSDP2: every rank has a share of each parameter, and gathers a layer when it is its turn."""

    def __init__(
        self, company: Company, model: Any, base: Any, *, device: str, dtype: torch.dtype, offload: bool = False
    ) -> None:
        super().__init__(company, model, base, device=device, dtype=dtype)
        on_card = device.startswith("cuda")
        mesh = init_device_mesh("cuda" if on_card else "cpu", (company.world,))
        packed = any(not parameter.is_floating_point() for parameter in base.parameters())
        mixed = on_card and dtype is torch.bfloat16 and not packed
        settings: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
            if mixed
            else MixedPrecisionPolicy(),
            "offload_policy": CPUOffloadPolicy() if offload and on_card else OffloadPolicy(),
        }
        units = set(getattr(base, "_no_split_modules", None) or ())
        for module in base.modules():
            if type(module).__name__ in units:
                fully_shard(module, **settings)
        fully_shard(base, **settings)
        self._calls_reach(base)
        base.register_forward_pre_hook(self._announce, prepend=True)

    def _calls_reach(self, base: Any) -> None:
        # generate would ask the other ranks after every token whether they have come to an end
        base.generate = functools.partial(base.generate, synced_gpus=False)
        tuner = getattr(self.model, "base_model", None)
        if self.model is not base and tuner is not None:
            tuner.forward = lambda *arguments, **named: base(*arguments, **named)

    def _announce(self, _module: nn.Module, _arguments: Any) -> None:
        """The leader alone is about to gather layers: the others have to take part."""
        self.company.ask(Word.FORWARD)

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients stay here until the last micro-batch."""
        self.base.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def go(self) -> None:
        """No layer stays gathered: optimizers have to find shards, and ranks the same things to gather."""
        super().go()
        self._let_go()

    def _let_go(self) -> None:
        for module in self.base.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def answers(self) -> Answers:
        return {Word.FORWARD: self._empty_pass, Word.GATHER: self._gather}

    @torch.no_grad()
    def _empty_pass(self) -> None:
        tokens = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        self.base(input_ids=tokens, use_cache=False)

    def _learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def _gather(self) -> dict[str, Tensor]:
        """One parameter after the other, the same on every rank; kept by the leader only."""
        self._let_go()
        found = {}
        for name, parameter in self._learning():
            assert isinstance(parameter, DTensor)
            value: Tensor = parameter.full_tensor().detach()
            if self.company.leads:
                found[name] = value.cpu()
        return found

    def whole(self) -> dict[str, Tensor] | None:
        self.company.ask(Word.GATHER)
        return self._gather()


def _may_be_unused(base: Any) -> bool:
    """Experts that no token of a micro-batch was sent to have no gradient."""
    config = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
