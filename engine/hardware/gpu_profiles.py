"""Graphics cards as `profiles/gpus.toml` describes them, and the search for the one a name means.

Owns the shape of that file and the matching of names. Must not know any estimate. Sizes are bytes, rates per second.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt

import msgspec

from engine.errors import EngineError
from engine.hardware.prices import CardPrice, PriceList, PriceStamp, price_stamp, read_prices
from engine.profiles import load_profile
from engine.units import GIB, MIB

_NOISE = frozenset(
    ("nvidia", "geforce", "amd", "radeon", "instinct", "tesla", "apple", "rtx", "gtx", "rx", "graphics", "gpu",
     "generation", "edition")
)  # fmt: skip
_MEMORY = re.compile(r"(?<![a-z0-9.])(\d{1,4})\s*(?:gib|gb|g)(?![a-z0-9])")
_TOLERANCE = 0.12
"""Visible memory may differ this much from the size on the box (ECC, reserved parts)."""


class _Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    vendor: str
    arch: str
    bandwidth_gb_per_s: float
    bf16_native: bool
    source: dict[str, str]
    aliases: tuple[str, ...] = ()
    compute_capability: tuple[int, int] | None = None
    vram_gib: float | None = None
    visible_mib: int | None = None
    unified_memory: bool = False
    bf16_tflops: float | None = None
    tdp_watts: float | None = None
    rent_usd_per_hour: tuple[float, float] | None = None
    note: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    read_on: str
    sources: dict[str, str]
    card: dict[str, _Card]


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """One card. Figures that nobody could source are None."""

    id: str
    name: str
    vendor: str
    arch: str
    vram_bytes: int
    """As sold; 0 where it depends on the machine (unified memory)."""
    visible_bytes: int
    """As the driver shows it: what a plan may use; 0 where it depends on the machine."""
    bandwidth_gb_per_s: float
    bf16_tflops: float | None
    """Dense tensor rate with FP32 accumulation; FP16's where the card has no native bf16."""
    bf16_native: bool
    tdp_watts: float | None
    compute_capability: tuple[int, int] | None
    unified_memory: bool
    rent_low_usd_per_hour: float | None
    rent_high_usd_per_hour: float | None
    aliases: tuple[str, ...]
    note: str
    read_on: str
    """The day the figures were read."""
    sources: dict[str, str]
    """Figure ("vram", "bandwidth", "tflops", "tdp", "rent") -> where it is from."""
    refreshed: CardPrice | None = None
    """The price in the refreshed list; `rent_low...` and `rent_high...` are then its."""
    rent_read_on: str = ""
    """The day the price was read."""
    rent_providers: tuple[str, ...] = ()
    """Whose offers the price is from."""

    @property
    def rent_source(self) -> str:
        """Where the price is from; "" when there is none."""
        return self.sources.get("rent", "")

    @property
    def rent_typical_usd_per_hour(self) -> float | None:
        """The refreshed list's median; else the geometric mean of low and high, as prices of one card differ by
        factors, not by cents."""
        if self.refreshed is not None:
            return self.refreshed.typical
        if self.rent_low_usd_per_hour is None or self.rent_high_usd_per_hour is None:
            return None
        return sqrt(self.rent_low_usd_per_hour * self.rent_high_usd_per_hour)


def load_gpu_profiles() -> tuple[GpuProfile, ...]:
    """Every card of `profiles/gpus.toml`, in its order, with refreshed prices where there are some.

    Raises EngineError `toml.*`. A damaged price list counts as none here; `scaler-wizard prices` says so.
    """
    return _priced(price_stamp())


@lru_cache(maxsize=4)
def _priced(stamp: PriceStamp) -> tuple[GpuProfile, ...]:
    prices = None
    with contextlib.suppress(EngineError):
        prices = read_prices(stamp)
    shipped = _shipped()
    return shipped if prices is None else tuple(_with_price(profile, prices) for profile in shipped)


def _with_price(profile: GpuProfile, prices: PriceList) -> GpuProfile:
    price = prices.cards.get(profile.id)
    if price is None:
        return profile
    return replace(
        profile,
        rent_low_usd_per_hour=price.low,
        rent_high_usd_per_hour=price.high,
        refreshed=price,
        rent_read_on=prices.read_on,
        rent_providers=price.providers,
        sources=profile.sources | {"rent": f"{prices.source}: {', '.join(price.providers)}"},
    )


@lru_cache(maxsize=1)
def _shipped() -> tuple[GpuProfile, ...]:
    file = load_profile("gpus.toml", _File)
    return tuple(_profile(key, card, file) for key, card in file.card.items())


def _profile(key: str, card: _Card, file: _File) -> GpuProfile:
    low, high = card.rent_usd_per_hour or (None, None)
    vram_bytes = round((card.vram_gib or 0) * GIB)
    return GpuProfile(
        id=key,
        name=card.name,
        vendor=card.vendor,
        arch=card.arch,
        vram_bytes=vram_bytes,
        visible_bytes=card.visible_mib * MIB if card.visible_mib else vram_bytes,
        bandwidth_gb_per_s=card.bandwidth_gb_per_s,
        bf16_tflops=card.bf16_tflops,
        bf16_native=card.bf16_native,
        tdp_watts=card.tdp_watts,
        compute_capability=card.compute_capability,
        unified_memory=card.unified_memory,
        rent_low_usd_per_hour=low,
        rent_high_usd_per_hour=high,
        aliases=card.aliases,
        note=card.note,
        read_on=file.read_on,
        sources={figure: _source(text, file.sources) for figure, text in card.source.items()},
        rent_read_on=file.read_on if card.rent_usd_per_hour else "",
        rent_providers=tuple(re.findall(r"(?:skypilot-)?([a-z]+)(?=,|:|$)", card.source.get("rent", ""))),
    )


def _source(text: str, sources: dict[str, str]) -> str:
    key, separator, detail = text.partition(":")
    if key not in sources:
        raise EngineError(
            "profile.source", f"profiles/gpus.toml: the source '{key}' is not explained in [sources].",
            next_step="Add it to [sources], or correct the key.",
        )  # fmt: skip
    return f"{sources[key]} ({detail.strip()})" if separator else sources[key]


# ── matching ──────────────────────────────────────────────────────────────────────────────────────────────────────
def find_gpu_profile(name: str, vram_bytes: int | None = None) -> GpuProfile | None:
    """The card a name means: "NVIDIA GeForce RTX 4090", "4090", "rtx4090", "a100-80".

    `vram_bytes` (or a size in the name) tells variants apart; without it the smallest of several variants is meant,
    as a plan should promise the least. None when no card fits: a laptop's 4090 is not a 4090.
    """
    found = matching_profiles(name, vram_bytes)
    return min(found, key=lambda profile: profile.visible_bytes) if found else None


def matching_profiles(name: str, vram_bytes: int | None = None) -> tuple[GpuProfile, ...]:
    """Every card the name could mean; more than one when only the memory would tell them apart."""
    words, size_gib = _words(name)
    if vram_bytes:
        size_gib = vram_bytes / GIB
    exact: list[GpuProfile] = []
    partial: list[GpuProfile] = []
    for profile in load_gpu_profiles():
        if size_gib is not None and not _size_fits(profile, size_gib):
            continue
        if any(_words(alias) == (words, None) for alias in profile.aliases):
            exact.append(profile)
        elif any(_means(alias, words, size_gib, index) for index, alias in enumerate((profile.name, *profile.aliases))):
            partial.append(profile)
    if exact or partial:
        return tuple(exact or partial)
    return _with_bare_size(name) if vram_bytes is None else ()


def near_names(name: str, count: int = 5) -> tuple[str, ...]:
    """Names of the file that look like `name`, nearest first; never empty."""
    names = [profile.name for profile in load_gpu_profiles()]
    by_key = {_plain(candidate): candidate for candidate in names}
    near = difflib.get_close_matches(_plain(name), list(by_key), n=count, cutoff=0.3)
    return tuple(by_key[key] for key in near) or ("RTX 3060 12GB", "RTX 4090 24GB", "A100 80GB", "H100 SXM 80GB")


def _means(alias: str, words: frozenset[str], size_gib: float | None, index: int) -> bool:
    """The card's own name (index 0) may leave its memory out; an alias that writes it wants it written."""
    alias_words, alias_size = _words(alias)
    return alias_words == words and (index == 0 or alias_size is None or size_gib is not None)


def _size_fits(profile: GpuProfile, size_gib: float) -> bool:
    if not profile.vram_bytes or profile.unified_memory:
        return True
    sizes = (profile.vram_bytes / GIB, profile.visible_bytes / GIB)
    return any(abs(size - size_gib) <= _TOLERANCE * size for size in sizes)


def _with_bare_size(name: str) -> tuple[GpuProfile, ...]:
    """ "a100-80": a last number may be the memory without its unit."""
    match = re.fullmatch(r"(.*[a-z0-9])[\s\-_]+(\d{1,3})", name.strip().lower())
    return matching_profiles(f"{match.group(1)} {match.group(2)}GB") if match else ()


def _words(name: str) -> tuple[frozenset[str], float | None]:
    """The telling words of a name, and the memory in it in GiB."""
    text = _plain(name)
    sizes = _MEMORY.findall(text)
    text = _MEMORY.sub(" ", text)
    return frozenset(text.split()) - _NOISE, float(sizes[0]) if sizes else None


def _plain(name: str) -> str:
    text = re.sub(r"\([^)]*\)", " ", name.lower())
    text = re.sub(r"[^a-z0-9.+]+", " ", text)
    text = re.sub(r"\b(rtx|gtx|rx)(?=[a-z]?\d)", r"\1 ", text)
    text = re.sub(r"\b(\d{4})\s*(ti)?\s*(super|s)\b", r"\1 \2 super", text)
    text = re.sub(r"\b(\d{4})(ti|d)\b", r"\1 \2", text)
    text = re.sub(r"\b(m\d)(max|pro|ultra)\b", r"\1 \2", text)
    return " ".join(text.split())
