"""Is this folder a model we can use? One look at its file names and its config, and a clear refusal when not.

Owns the reasons for refusing: pickle, remote code, adapters, other formats, other kinds of model. Must not know the
hub; `check_files` works on names only, so that a hub listing is judged by the same rules before any download.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.models.config import CONFIG_NAME, architecture_class, read_json_object, text_part
from engine.models.families import find_family

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)

_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
_CONVERT = (
    "Convert it once with `model.save_pretrained(folder)` in a program you trust, or ask for the safetensors version."
)
_NOT_CAUSAL_TYPES = frozenset(
    (
        *("bert", "roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "xlm-roberta", "modernbert"),
        *("t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper", "clip", "siglip", "vit", "dinov2", "wav2vec2"),
    )
)
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of a usable local model folder. Raises EngineError `model.*` with the reason when it is not one."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise EngineError(
            "model.unreadable",
            f"Cannot open the folder {folder}.",
            cause=error.strerror or str(error),
            next_step="Check the path and its permissions.",
        ) from error
    if CONFIG_NAME not in names and ADAPTER_CONFIG not in names:
        _refuse_nested(folder, names)
    base = _adapter_base(folder) if ADAPTER_CONFIG in names else ""
    check_files(names, str(folder), adapter_base=base)
    tree = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    check_config(tree, str(folder))
    return tree


def has_safetensors(names: Iterable[str]) -> bool:
    """Whether full weights, not just an adapter, are among the file names."""
    return any(name.endswith(".safetensors") and not name.startswith("adapter") for name in names)


def check_files(names: Iterable[str], where: str, *, adapter_base: str = "") -> None:
    """Refuse by file names alone. Raises EngineError `model.*`."""
    listed = set(names)
    if not listed:
        raise EngineError(
            "model.empty", f"{where} is empty.", next_step="Give a folder with config.json and safetensors files."
        )
    safetensors = has_safetensors(listed)
    if ADAPTER_CONFIG in listed and not safetensors:
        base = f" of {adapter_base}" if adapter_base else ""
        raise EngineError(
            "model.adapter",
            f"{where} is an adapter{base}, not a whole model.",
            cause="It holds only the small matrices that fine-tuning added.",
            next_step=f"Use its base model{f', {adapter_base},' if adapter_base else ''} or merge the two first.",
        )
    if "model_index.json" in listed:
        raise EngineError(
            "model.not_language",
            f"{where} is a diffusers pipeline (images), not a language model.",
            next_step="Choose a causal language model.",
        )
    ggufs = sorted(name for name in listed if name.lower().endswith(".gguf"))
    if ggufs and not safetensors:
        raise EngineError(
            "model.gguf",
            f"{where} holds GGUF files ({ggufs[0]}), which are for running, not for training.",
            cause="GGUF stores quantised weights without a way back.",
            next_step="Use the original Hugging Face folder or hub id the GGUF was made from.",
        )
    if CONFIG_NAME not in listed:
        _refuse_without_config(listed, where)
    pickles = sorted(name for name in listed if name.endswith(PICKLE_SUFFIXES) and name not in _NOT_WEIGHTS)
    if pickles and not safetensors:
        raise EngineError(
            "model.pickle",
            f"{where} has its weights only as pickle ({pickles[0]}); this is refused.",
            cause="Opening a pickle file can run any code that was hidden in it.",
            next_step=_CONVERT,
        )


def _refuse_without_config(listed: set[str], where: str) -> None:
    if "params.json" in listed:
        raise EngineError(
            "model.original_format",
            f"{where} is in the publisher's original format (params.json), not in Hugging Face format.",
            next_step="Download the Hugging Face version of the model, the one with config.json.",
        )
    raise EngineError(
        "model.no_config",
        f"{where} has no {CONFIG_NAME}.",
        cause="Without it the shape of the model is unknown.",
        next_step="Give the folder that holds config.json and the safetensors files.",
    )


def _refuse_nested(folder: Path, names: list[str]) -> None:
    """A download cache or a parent folder: name the folder that was probably meant."""
    for pattern in ("snapshots/*/config.json", "*/config.json", "*/snapshots/*/config.json"):
        found = sorted(folder.glob(pattern))
        if found and not has_safetensors(names):
            raise EngineError(
                "model.no_config",
                f"{folder} has no {CONFIG_NAME}, but a folder in it does.",
                next_step=f"Did you mean {found[-1].parent}?",
            )


def _adapter_base(folder: Path) -> str:
    try:
        tree = read_json_object(folder / ADAPTER_CONFIG, code="model.adapter", what="an adapter config")
    except EngineError:
        return ""
    base = tree.get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def check_config(tree: Mapping[str, Any], where: str) -> None:
    """Refuse remote code and everything that is not a causal language model. Raises EngineError `model.*`."""
    _check_remote_code(tree, where)
    class_name = architecture_class(tree)
    part, key = text_part(dict(tree))
    model_type = part.get("model_type")
    known = find_family(model_type if isinstance(model_type, str) else "", class_name).known
    if tree.get("is_encoder_decoder") is True or part.get("is_encoder_decoder") is True:
        raise _not_causal(where, class_name or "an encoder-decoder model")
    if not class_name and isinstance(model_type, str) and model_type in _NOT_CAUSAL_TYPES:
        raise _not_causal(where, model_type)
    if class_name and not _CAUSAL.search(class_name):
        raise _not_causal(where, class_name)
    if class_name.endswith("ForConditionalGeneration") and not key and not known:
        raise _not_causal(where, class_name)
    if not class_name and not key and not isinstance(tree.get("model_type"), str):
        raise EngineError(
            "model.config_incomplete",
            f"{where}: config.json names neither 'architectures' nor 'model_type'.",
            cause="It may belong to something else than a language model.",
            next_step="Give the folder of a Hugging Face causal language model.",
        )


def _check_remote_code(tree: Mapping[str, Any], where: str) -> None:
    """`auto_map` is harmless only where it names the class that transformers has built in (Phi-3, Falcon)."""
    auto_map = tree.get("auto_map")
    if not auto_map:
        return
    model_type = tree.get("model_type")
    family = find_family(model_type if isinstance(model_type, str) else "")
    target = auto_map.get("AutoModelForCausalLM") if isinstance(auto_map, dict) else None
    if family.known and isinstance(target, str) and target.rsplit(".", 1)[-1] == family.causal_class:
        return
    code = f" ({target[:60]})" if isinstance(target, str) else ""
    raise EngineError(
        "model.remote_code",
        f"{where} needs its own program code to load{code}; this is refused.",
        cause="'auto_map' in config.json asks to run Python files that come with the model.",
        next_step="Choose a model that the transformers library supports itself.",
    )


def _not_causal(where: str, class_name: str) -> EngineError:
    return EngineError(
        "model.not_causal",
        f"{where} is not a causal language model ({class_name[:60]}).",
        cause="Only decoder models that continue text (…ForCausalLM) can be tuned here.",
        next_step="Choose a causal language model, for example Qwen/Qwen3-0.6B.",
    )
