"""From a rehearsal to the model and optimizer that the worker would have, without weights from disk.

Owns building: on `meta` for a dry run (then fake tensors), or with random values on a real device. Uses the worker's
own adapter and head code, so that what is rehearsed is what will run. Must not know counting or timing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, ExitCode
from engine.estimate.rehearsal import Rehearsal
from engine.evaluation.head import SelectiveHead, Wanted, summed_loss
from engine.jobs.spec import AdapterSection
from engine.train.model import AdapterExtras, add_adapter, checkpoint_activations

DTYPES = {2: torch.bfloat16, 4: torch.float32}


def config_of(rehearsal: Rehearsal, layers: int | None = None) -> Any:
    """The transformers configuration, cut to `layers` layers. Raises EngineError `rehearsal.config`."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    tree = dict(rehearsal.config)
    kind = str(tree.pop("model_type", ""))
    tree.pop("quantization_config", None)
    for key in ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map"):
        tree.pop(key, None)
    if layers is not None:
        for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if name in tree:
                tree[name] = layers
        for name, value in list(tree.items()):
            if isinstance(value, list) and name in ("layer_types", "no_rope_layers", "mlp_layer_types"):
                tree[name] = value[:layers]
    try:
        config = AutoConfig.for_model(kind, **tree)
    except (ValueError, KeyError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
        raise EngineError(
            "rehearsal.config",
            f"transformers cannot build a model from this config (model_type '{kind[:60]}').",
            cause=" ".join(str(error).split())[:300],
            next_step="The formula's estimate stands; compare the config with the model's own.",
            exit_code=ExitCode.BAD_INPUT,
        ) from error
    config.use_cache = False
    return config


def build_model(rehearsal: Rehearsal, config: Any) -> tuple[Any, Any]:
    """(model with adapter, base) on the current default device, in training mode with the right parameters learning.

    On `meta` 4-bit layers are emulated; on a real device `engine.rehearsal.probe` packs real ones before the adapter.
    """
    base = bare_model(rehearsal, config)
    if rehearsal.quantization != "none":
        from engine.rehearsal.packed import pack_linears

        pack_linears(
            base,
            base.get_output_embeddings(),
            DTYPES[rehearsal.compute_bytes],
            rehearsal.quantization,
            double=rehearsal.double_quantization,
        )
        base.is_loaded_in_4bit = True
    if rehearsal.kbit_prepared:
        _prepare_kbit(base)
    return with_method(base, rehearsal), base


def bare_model(rehearsal: Rehearsal, config: Any) -> Any:
    """The plain causal model in the compute type, frozen."""
    from transformers import AutoModelForCausalLM

    config._attn_implementation = rehearsal.attention
    if getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=DTYPES[rehearsal.compute_bytes]
    )
    model.requires_grad_(False)
    return model


def with_method(base: Any, rehearsal: Rehearsal) -> Any:
    """Adapter, full training or new blocks on `base`; checkpointing switched on where asked."""
    if rehearsal.method == "adapter":
        section = AdapterSection(
            rank=rehearsal.rank, targets=rehearsal.targets, dropout=rehearsal.dropout, dora=rehearsal.dora
        )
        extras = AdapterExtras(
            gradient_checkpointing=rehearsal.checkpointing,
            offload=rehearsal.offload_activations,
            norms=rehearsal.train_norms and rehearsal.fp32_copies,
            embeddings=rehearsal.train_embeddings and rehearsal.fp32_copies,
        )
        model = add_adapter(base, section, extras=extras)
        if rehearsal.adapter_bytes != 4:
            _cast_trainable(model, DTYPES[rehearsal.adapter_bytes])
        if rehearsal.train_embeddings and not rehearsal.fp32_copies:
            _learn_beside(base.get_input_embeddings(), base.get_output_embeddings())
    else:
        model = base
        if rehearsal.checkpointing:
            checkpoint_activations(base, offload=rehearsal.offload_activations)
        _train_blocks(base, rehearsal)
    if rehearsal.offload_activations and base.device.type == "meta":  # else the worker's code has seen to it
        base.activation_checkpointing_enable({"use_reentrant": False}, offload=True)
    if rehearsal.optimizer == "adamw mixed":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model.train() if not rehearsal.evaluate else model.eval()


def _learn_beside(*modules: nn.Module) -> None:
    """A copy learns and the frozen original stays, as with peft's `modules_to_save`; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in modules:
        weight: Any = module.weight
        if id(weight) not in made:
            made[id(weight)] = weight.detach().clone()
            module.register_buffer("frozen_original", made[id(weight)], persistent=False)
        weight.requires_grad_(True)


def _prepare_kbit(base: Any) -> None:
    """The part of peft's `prepare_model_for_kbit_training` that costs memory: what is not packed becomes fp32."""
    for parameter in base.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.to(torch.float32)


def _cast_trainable(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _train_blocks(base: Any, rehearsal: Rehearsal) -> None:
    """Every parameter learns, or the blocks that stand where new ones would be spread evenly between the old."""
    if rehearsal.method == "full":
        base.requires_grad_(True)
        return
    layers = decoder_layers(base)
    for index in new_positions(len(layers), rehearsal.new_layers):
        layers[index].requires_grad_(True)


def new_positions(layers: int, new: int) -> tuple[int, ...]:
    """Where `new` of `layers` blocks stand when they are spread evenly, the last one last (LLaMA-Pro)."""
    return tuple(sorted({(number + 1) * layers // max(new, 1) - 1 for number in range(new)}))


def decoder_layers(base: Any) -> Any:
    """The list of decoder layers of a causal model. Raises EngineError `rehearsal.layers`."""
    count = int(base.config.num_hidden_layers)
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise EngineError(
        "rehearsal.layers",
        f"{type(base).__name__} has no list of {count} layers.",
        next_step="The formula's estimate stands.",
    )


@contextlib.contextmanager
def masks(masked: bool) -> Iterator[None]:
    """Have transformers build the packed mask, or none, whatever kind of tensor it sees.

    With fake tensors it cannot look at positions and always builds one. Private module attribute of transformers;
    `tests/train/test_dry_run.py` fails when it is gone.
    """
    from transformers import masking_utils

    original = masking_utils.find_packed_sequence_indices

    def replaced(position_ids: Tensor) -> Tensor | None:
        return torch.zeros_like(position_ids) if masked else None

    masking_utils.find_packed_sequence_indices = replaced
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


@contextlib.contextmanager
def as_on_a_card() -> Iterator[None]:
    """Have autocast on the CPU's fake tensors do what it does on a card.

    peft asks `torch.is_autocast_enabled()`, which means CUDA's; and CUDA's autocast computes layer norms in fp32. Its
    softmax differs in what it makes: `_CudaSoftmax`.
    """
    asked, layer_norm = torch.is_autocast_enabled, nn.functional.layer_norm
    softmax, dropout = nn.functional.softmax, nn.functional.dropout

    def enabled(device: str = "cpu") -> bool:
        return bool(asked("cpu"))

    def wide_layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if asked("cpu"):
            x = x.float()
            weight, bias = (t if t is None else t.float() for t in (weight, bias))
        return layer_norm(x, shape, weight, bias, eps)

    torch.is_autocast_enabled = enabled  # type: ignore[assignment]
    nn.functional.layer_norm = wide_layer_norm  # type: ignore[assignment]
    nn.functional.softmax = _softmax  # type: ignore[assignment]
    nn.functional.dropout = _dropout  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.is_autocast_enabled = asked
        nn.functional.layer_norm = layer_norm
        nn.functional.softmax = softmax
        nn.functional.dropout = dropout


@contextlib.contextmanager
def host_memory() -> Iterator[None]:
    """Have what checkpointed layers offload leave the fake device: nothing stays of it, and a new tensor comes back.

    transformers copies it to pinned host memory, which with fake tensors would be the same device.
    """
    from transformers import modeling_utils

    names: Any = modeling_utils
    original = names.save_on_cpu

    def away(*_arguments: Any, **_options: Any) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(_Away, _Away.back)

    names.save_on_cpu = away
    try:
        yield
    finally:
        names.save_on_cpu = original


class _Away:
    """What is remembered of a tensor in host memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype

    def back(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype)


class _CudaSoftmax(torch.autograd.Function):
    """CUDA's softmax in memory terms: from 16 bits to fp32 without a copy; its gradient makes a whole product first.

    Source: torch `aten/src/ATen/native/cuda/SoftMax.cu`, `softmax_backward_cuda_out`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.given = x.dtype
        y = torch.empty_like(x, dtype=dtype)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (y,) = ctx.saved_tensors
        product = gradients[0] * y
        return torch.empty_like(product, dtype=ctx.given), None


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A card keeps a mask of one byte per value; the CPU's dropout one in the values' type."""
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def _softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    wanted = dtype or (torch.float32 if torch.is_autocast_enabled("cpu") else x.dtype)
    result: Tensor = _CudaSoftmax.apply(x, wanted)  # type: ignore[no-untyped-call]
    return result


def trained_positions(rehearsal: Rehearsal) -> int:
    """How many positions of a micro-batch carry loss."""
    return max(round(rehearsal.trained_share * rehearsal.batch * rehearsal.sequence), 1)


def step_loss(model: Any, head: SelectiveHead, rehearsal: Rehearsal, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """The loss of one micro-batch as the rehearsed stack computes it, and what its caller holds during backward."""
    count = inputs["targets"].shape[0]
    if rehearsal.loss_chunk_tokens:
        wanted = Wanted(inputs["input_ids"], inputs["position_ids"], inputs["positions"])
        with autocast(rehearsal, inputs["input_ids"].device.type):
            return head.loss_at(model, wanted, inputs["targets"], rehearsal.loss_chunk_tokens) / count, None
    if rehearsal.selective_head:
        with autocast(rehearsal, inputs["input_ids"].device.type):
            logits = head.logits_at(model, inputs["input_ids"], inputs["position_ids"], inputs["positions"])
        if rehearsal.autocast:
            logits = logits.float()  # accelerate returns fp32 from a mixed-precision forward
        return summed_loss(logits, inputs["targets"]) / count, None
    with autocast(rehearsal, inputs["input_ids"].device.type):
        output = model(input_ids=inputs["input_ids"], labels=inputs["input_ids"], use_cache=False)
    return output.loss, output if rehearsal.holds_output else None


def evaluation_logits(
    model: Any, head: SelectiveHead, rehearsal: Rehearsal, inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(logits, targets) of one batch as the rehearsed stack evaluates it: at the positions that count, or at all."""
    with autocast(rehearsal, inputs["input_ids"].device.type):
        if rehearsal.selective_head:
            logits = head.logits_at(model, inputs["input_ids"], inputs["position_ids"], inputs["positions"])
            return logits, inputs["targets"]
        output = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
    return output.logits.flatten(0, 1), inputs["input_ids"].flatten()


def autocast(rehearsal: Rehearsal, device: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast where the stack uses it."""
    return torch.autocast(device, torch.bfloat16) if rehearsal.autocast else contextlib.nullcontext()


def make_inputs(rehearsal: Rehearsal, device: str, vocabulary: int) -> dict[str, Tensor]:
    """Random tokens; `positions` are the first that carry loss."""
    shape = (rehearsal.batch, rehearsal.sequence)
    count = trained_positions(rehearsal)
    return {
        "input_ids": torch.randint(0, vocabulary, shape, device=device),
        "position_ids": torch.arange(rehearsal.sequence, device=device).expand(shape).contiguous(),
        "positions": torch.arange(count, device=device),
        "targets": torch.randint(0, vocabulary, (count,), device=device),
    }
