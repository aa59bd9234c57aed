"""How a row's words say what learned: method, packing, optimizer, rank, targets.

Owns regular expressions over the method columns. Must not know stacks' constants or figures.
"""

from __future__ import annotations

import re

from engine.estimate.stacks import Stack
from engine.estimate.workload import Method, OptimizerKind, Packing4Bit
from tests.score.rows import Row


class NotExpressible(Exception):
    """The formulas have no term for what this row did; the text is the reason that is listed."""


_NO_FORMULA = (
    (r"ia3|\(ia\)", "IA3 scales activations"),
    (r"prompt|prefix|p-?tuning", "virtual tokens instead of weights"),
    (r"\badapter\b|adapter_v|llama-adapter|adapter v", "bottleneck or prefix adapters"),
    (r"\b(vera|vblora|vb-lora|randlora)\b", "shared random projections"),
    (r"\b(oft|boft|hra|c3a|bone|miss|fourier\w*|waveft|road|shira|delora|psoft|gralora|osf)\b", "not low-rank pairs"),
    (
        r"\b(loha|lokr|xlora|poly|cpt|lily|layernorm|ln tuning|ln_tuning|trainable tokens|trainable_tokens)\b",
        "not LoRA",
    ),
    (r"galore|q-?galore|apollo|lisa|badam", "optimizer states of projected or changing parts"),
    (r"\(\d+ layers\)|last \d+ layers|freeze", "only some layers are trained"),
    (r"dpo|ppo|grpo|kto|orpo|reward", "a second model or several passes per step"),
    (r"inference|generat", "no training"),
)


def refuse_unknown(row: Row) -> None:
    """Raise NotExpressible for methods without a formula."""
    for words, why in _NO_FORMULA:
        if re.search(words, row.method) and not re.search(r"llama-?pro", row.method):
            raise NotExpressible(f"{row.method}: {why}, no formula")


def method_of(row: Row) -> Method:
    """Which parameters learn. Raises NotExpressible."""
    words = row.method
    if re.search(r"llama-?pro|new blocks|block expansion", words):
        return Method.NEW_BLOCKS
    if re.search(r"lora|dora|adapter|pissa|\beva\b|corda|loftq", words):
        return Method.ADAPTER
    if re.search(r"full|\bsft\b|pre-?train|continued|\bft\b|fine-?tun", words):
        return Method.FULL
    raise NotExpressible(f"{words or 'method not named'}: no formula")


def new_blocks_of(row: Row) -> int:
    """How many blocks were added: as written, else four as ms-swift and the paper's smallest case have it."""
    found = re.search(r"(\d+) (?:new|added|extra|inserted)[a-z ]*blocks?", f"{row.method} {row.notes}")
    return int(found[1]) if found else 4


def packing_of(row: Row, stack: Stack) -> Packing4Bit:
    """How the frozen base is stored. Raises NotExpressible for 8-bit and other packings."""
    words = row.quant
    if words in ("", "none", "no", "-", "16-bit", "bf16", "fp16") or re.fullmatch(r"none.*", words):
        if not re.search(r"q-?lora", row.method):
            return Packing4Bit.NONE
        words = "4-bit"
    if re.search(r"gptq|awq", words):
        if re.search(r"int8|8-?bit", words):
            raise NotExpressible(f"{row.quant}: 8-bit packing has no formula")
        return Packing4Bit.GPTQ
    if re.search(r"nf4|4-?bit|int4|fp4|bnb", words) and not re.search(r"int8|8-?bit|fp8", words):
        return Packing4Bit.NF4_DOUBLE if _double(words, stack) else Packing4Bit.NF4
    raise NotExpressible(f"{row.quant}: packing has no formula")


def _double(words: str, stack: Stack) -> bool:
    """Double quantisation as written; else as the framework does by default (torchao and Unsloth always)."""
    if re.search(r"no double|without double|single", words):
        return False
    if re.search(r"-dq|double|nested", words):
        return True
    return stack.id.startswith(("torchtune", "unsloth", "llama-factory", "ms-swift"))


def optimizer_of(row: Row, method: Method, stack: Stack) -> OptimizerKind:
    """The optimizer's states. Raises NotExpressible where it is not stated for full training, or has no formula."""
    words = row.optimizer
    if re.search(r"adafactor|\bsgd\b", words):  # adafactor's factored states are a row and a column per matrix
        return OptimizerKind.SGD
    if re.search(r"lion|muon|came|sophia|lomo|galore", words) and method is not Method.ADAPTER:
        raise NotExpressible(f"optimizer {row.optimizer}: no formula")
    if re.search(r"paged", words):
        return OptimizerKind.PAGED_ADAMW_8BIT
    if re.search(r"[48]-?bit|fp8|int[48]", words):
        return OptimizerKind.ADAMW_8BIT
    if method is not Method.ADAPTER:
        if re.search(r"not stated|differ", words):
            raise NotExpressible("optimizer not stated, and full training depends on it")
        if re.search(r"mixed|master|16 bytes|apex", words) or stack.id.endswith("zero3"):
            return OptimizerKind.ADAMW_MIXED
    return OptimizerKind.ADAMW


_NAMES = {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj",),
    "query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",), "output": ("o_proj",), "projection": ("o_proj",),
    "output_proj": ("o_proj",), "proj": ("o_proj",), "wo": ("o_proj",),
    "gate": ("gate_proj",), "up": ("up_proj",), "down": ("down_proj",),
    "w1": ("gate_proj",), "w2": ("up_proj",), "w3": ("down_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"), "qkv": ("q_proj", "k_proj", "v_proj"),
    "w_pack": ("q_proj", "k_proj", "v_proj"), "wqkv": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"), "attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "c_proj": ("o_proj", "down_proj"),
}  # fmt: skip
_BY_STACK = {"fsdp-qlora": ("k_proj", "q_proj", "v_proj", "up_proj", "down_proj", "gate_proj")}
_DEFAULT_RANK = {"fsdp-qlora": 64}


def targets_of(row: Row, stack: Stack) -> tuple[str, ...]:
    """The adapted linears. "DEFAULT" and nothing mean the framework's default: fused q, k, v in ms-swift, q and v in
    peft."""
    words = re.sub(r"\([^)]*\)", " ", row.targets)
    if re.search(r"\ball\b|all-linear|every linear", words):
        return ("all-linear",)
    if not words.strip():
        return _BY_STACK.get(stack.id, ("q_proj", "v_proj"))
    if "default" in words:
        return ("q_proj", "k_proj", "v_proj") if "qkv" in row.targets or "swift" in stack.id else ("q_proj", "v_proj")
    found: list[str] = []
    for word in re.split(r"[\s,+/&]+", words):
        found.extend(_NAMES.get(word, (word,) if word.endswith("_proj") else ()))
    if not found:
        raise NotExpressible(f"targets '{row.targets}': not understood")
    return tuple(dict.fromkeys(found))


def rank_of(row: Row, stack: Stack) -> int:
    """The rank as written, else the framework's default (8 in peft)."""
    return row.rank or _DEFAULT_RANK.get(stack.id, 8)


def trains_embeddings(row: Row) -> bool:
    """Embeddings and head learn beside the adapter: Qwen's LoRA (emb), LongLoRA, or a note about saved modules."""
    return bool(re.search(r"\(emb|embed|longlora|modules_to_save|wte", row.method))
