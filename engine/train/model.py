"""From a model folder to a model with a trainable adapter: 4-bit or plain base, LoRA layers, attention, checkpointing.

Owns loading and the adapter's shape. Must not know data, the loop or the run directory.

peft's `prepare_model_for_kbit_training` is not used. It would turn everything that is not 4-bit - embeddings, output
head, norms - into float32: for a vocabulary of 128k at width 4096 that is 2 GiB more for each of the two tables, which
nothing trains. The norms compute in float32 inside whatever they are stored in, and the loss is taken in float32 here
(`engine.evaluation.head`). The two things of it that are needed - frozen base weights and gradient checkpointing - are
done below by name.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError, ExitCode
from engine.evaluation.head import SelectiveHead
from engine.evaluation.model import LoadedModel
from engine.jobs.spec import AdapterSection, ContextSection, JobSpec, Optimizer
from engine.jobs.spec_distillation import Held
from engine.train import also_trained
from engine.train.environment import Device

ALL_LINEAR = "all-linear"
NAMES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class BaseRequest:
    """How a base model is wanted."""

    folder: Path
    quantization: str
    """ "nf4", "fp4" or "none"."""
    double_quantization: bool
    dtype: torch.dtype
    """Compute type, and the type of everything that is not quantised."""
    device: str
    unpacked: tuple[str, ...] = ()
    """Modules to keep out of 4 bits; empty leaves the choice to transformers."""


def base_request(spec: JobSpec, folder: Path, device: Device) -> BaseRequest:
    """What the spec asks for, on this device."""
    kind = spec.quantization_kind
    return BaseRequest(folder, kind, spec.quantization.double, device.compute_dtype, device.torch_device)


def check_hardware(spec: JobSpec, device: Device) -> None:
    """Refuse what this device cannot do. Raises EngineError."""
    if spec.training.optimizer is not Optimizer.ADAMW and not device.is_cuda:
        raise EngineError(
            "train.optimizer_needs_cuda",
            f'optimizer = "{spec.training.optimizer.value}" needs an NVIDIA card.',
            cause=f"This run computes on {device.name}.",
            next_step='Set training.optimizer = "adamw"; for an adapter it costs little memory.',
            exit_code=ExitCode.RUN_FAILED,
        )
    taught_in_4_bits = spec.distillation.distils and spec.distillation.held is Held.NF4
    if (spec.quantization_kind != "none" or taught_in_4_bits) and not _has_bitsandbytes():
        otherwise = 'set task = "lora", which keeps the base unquantised'
        if taught_in_4_bits:
            otherwise = 'set distillation.held = "auto"'
        raise EngineError(
            "train.no_bitsandbytes",
            "The 4-bit library bitsandbytes cannot be loaded here.",
            cause=_bitsandbytes_error(),
            next_step=f"Install bitsandbytes 0.50 or newer, or {otherwise}.",
            exit_code=ExitCode.RUN_FAILED,
        )


def _has_bitsandbytes() -> bool:
    return not _bitsandbytes_error()


def _bitsandbytes_error() -> str:
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # a broken native library raises whatever it likes
        return f"{type(error).__name__}: {error}"
    return ""


def load_base(request: BaseRequest) -> Any:
    """The frozen base model from safetensors, never from pickles or the repository's own code. Raises EngineError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(request.folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            request.folder,
            config=config,
            dtype=request.dtype,
            quantization_config=_quantization(request),
            device_map={"": request.device} if request.device != "cpu" else None,
            attn_implementation=attention_kind(config),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EngineError(
            "train.model_not_loaded",
            f"The model in {request.folder} could not be loaded.",
            cause=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            next_step=f"Look at it with: scaler-wizard inspect {shlex.quote(str(request.folder))}",
            exit_code=ExitCode.RUN_FAILED,
        ) from error
    model.requires_grad_(False)
    model.config.use_cache = False
    _same_kernels_everywhere(model)
    return model


def _quantization(request: BaseRequest) -> Any:
    if request.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=request.quantization,
        bnb_4bit_use_double_quant=request.double_quantization,
        bnb_4bit_compute_dtype=request.dtype,
        llm_int8_skip_modules=list(request.unpacked) or None,
    )


def attention_kind(config: Any) -> str:
    """ "sdpa", except for families that cap attention scores (Gemma 2): SDPA cannot, so they take the plain path."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def _same_kernels_everywhere(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    The repacked layout is for inference in bfloat16 only: it would change the numbers of evaluation against training,
    stay on afterwards, and have no backward pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def linear_names(model: Any) -> tuple[str, ...]:
    """Last name components of the linear modules, the output head left out; 4-bit layers are linear modules too."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return tuple(sorted(names))


def check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    """Raises EngineError `train.unknown_target` with the names there are."""
    if targets == (ALL_LINEAR,):
        return
    names = [name for name, _ in model.named_modules()]
    unknown = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if unknown:
        there = linear_names(model)
        more = " ..." if len(there) > NAMES_SHOWN else ""
        raise EngineError(
            "train.unknown_target",
            f"The model has no module named {', '.join(unknown)}.",
            cause=f"Its linear modules are {', '.join(there[:NAMES_SHOWN])}{more}.",
            next_step='Name some of these in adapter.targets, or use ["all-linear"].',
        )


@dataclass(frozen=True, slots=True)
class AdapterExtras:
    """What is wanted beside the adapter itself."""

    gradient_checkpointing: bool = False
    offload: bool = False
    """What checkpointed layers keep, their inputs, waits in pinned host memory."""
    norms: bool = False
    """Norms learn too, as whole copies."""
    embeddings: bool = False


def extras_of(spec: JobSpec) -> AdapterExtras:
    """What the spec asks for. Norms and embeddings learn where a window is trained, and nowhere else."""
    training, context = spec.training, spec.context
    longer = context != ContextSection()
    return AdapterExtras(
        gradient_checkpointing=training.gradient_checkpointing,
        offload=training.offload_activations,
        norms=longer and context.train_norms,
        embeddings=longer and context.train_embeddings,
    )


def add_adapter(
    base: Any, section: AdapterSection, *, gradient_checkpointing: bool = False, extras: AdapterExtras | None = None
) -> Any:
    """A PeftModel around `base`; only the adapter and the `extras` are trainable, in float32. Seed before: A is drawn
    at random."""
    from peft import LoraConfig, get_peft_model

    extras = extras or AdapterExtras(gradient_checkpointing)
    check_targets(base, section.targets)
    if extras.gradient_checkpointing:
        checkpoint_activations(base, offload=extras.offload)
    whole = also_trained.names_of(base, norms=extras.norms, embeddings=extras.embeddings)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=section.dropout,
        target_modules=ALL_LINEAR if section.targets == (ALL_LINEAR,) else list(section.targets),
        use_rslora=section.rslora,
        use_dora=section.dora,
        bias="none",
        task_type="CAUSAL_LM",
        modules_to_save=list(whole) or None,
        ensure_weight_tying=extras.embeddings and also_trained.ties(base),
    )
    model = get_peft_model(base, config)
    also_trained.hold_in_float32(model)
    return model


def checkpoint_activations(base: Any, *, offload: bool) -> None:
    """Layers keep their inputs only and are run again in the backward pass; with `offload` the inputs wait in pinned
    host memory, where that is not where they are anyway.

    Not reentrant: works although the embeddings need no gradient.
    """
    enable = getattr(base, "activation_checkpointing_enable", None)
    if enable is None:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        enable({"use_reentrant": False}, offload=offload and base.device.type == "cuda")


def ready(model: Any, base: Any, tokenizer: ChatTokenizer, device: Device) -> LoadedModel:
    """`model` (the base or a PeftModel around it) with everything a forward pass needs."""
    return LoadedModel(model, SelectiveHead(base), tokenizer, device.torch_device, device.compute_dtype)


def trainable_parameters(model: nn.Module) -> int:
    """Elements that receive gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def are_finite(model: nn.Module) -> bool:
    """Whether all elements that receive gradients are numbers; of shards, those that this process has."""
    parts = (getattr(one, "_local_tensor", one) for one in model.parameters() if one.requires_grad)
    largest = torch.nn.utils.get_total_norm([part.detach() for part in parts if part.numel()], math.inf)
    return bool(torch.isfinite(largest))
