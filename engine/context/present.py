"""The scaling a config already asks for, as divisors.

Owns turning present settings into a `Scaling`, and taking YaRN's own m along to a larger factor. Must not know files.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from engine.context.method import Options
from engine.context.methods import by_parts, linear, llama3, longrope
from engine.context.scaling import Rotary, Scaling, unscaled
from engine.models.config import ConfigReader

LARGEST_PRESENT_FACTOR = 1e6


def present_scaling(rotary: Rotary, name: str) -> Rotary:
    """The rotary with its `present` filled in. Raises EngineError `model.config_value` for settings that cannot be."""
    kind = rotary.present_kind
    if kind == "default":
        return rotary
    reader = ConfigReader(dict(rotary.present_settings), name, prefix="rope_parameters.")
    factor = reader.number("factor")
    if not 1 <= factor <= LARGEST_PRESENT_FACTOR:
        raise reader.wrong("factor", factor, f"between 1 and {LARGEST_PRESENT_FACTOR:g}")
    options = present_options(rotary, name)
    return replace(rotary, present=_scaling(rotary, factor, options, reader))


def _scaling(rotary: Rotary, factor: float, options: Options, reader: ConfigReader) -> Scaling:
    match rotary.present_kind:
        case "linear":
            return linear.scale(rotary, factor, options)
        case "yarn":
            return by_parts.scale_yarn(rotary, factor, options)
        case "llama3":
            return llama3.scale(rotary, factor, options)
        case "longrope":
            long, short = _list(reader, "long_factor"), _list(reader, "short_factor")
            return longrope.scale(rotary, factor, replace(options, long_divisors=long, short_divisors=short))
        case _:
            return unscaled(rotary)


def _list(reader: ConfigReader, key: str) -> tuple[float, ...]:
    values = reader.raw(key)
    numbers = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
    if not numbers or not values:
        raise reader.wrong(key, values, "a list of numbers")
    return tuple(float(value) for value in values)


def present_options(rotary: Rotary, name: str = "config.json") -> Options:
    """The settings of a scaled config as options of the method of that type; YaRN's m where it is not the default."""
    settings = dict(rotary.present_settings)
    reader = ConfigReader(settings, name, prefix="rope_parameters.")
    plain = Options()
    factor = reader.number("factor", default=1.0)
    return Options(
        beta_fast=reader.number("beta_fast", default=plain.beta_fast),
        beta_slow=reader.number("beta_slow", default=plain.beta_slow),
        low_freq_factor=reader.number("low_freq_factor", default=plain.low_freq_factor),
        high_freq_factor=reader.number("high_freq_factor", default=plain.high_freq_factor),
        truncate=reader.flag("truncate", default=True),
        attention_factor=_attention_factor(rotary.present_kind, settings, factor, reader),
    )


def _attention_factor(kind: str, settings: dict[str, Any], factor: float, reader: ConfigReader) -> float | None:
    """m as written, or by `mscale` over `mscale_all_dim` (DeepSeek's form of YaRN); None for the method's own."""
    if settings.get("attention_factor") is not None:
        return reader.number("attention_factor")
    if kind == "yarn" and settings.get("mscale") and settings.get("mscale_all_dim"):
        return mscale_attention_factor(factor, reader.number("mscale"), reader.number("mscale_all_dim"))
    return None


def mscale_attention_factor(factor: float, over: float, under: float) -> float:
    """(0.1·a·ln s + 1) / (0.1·b·ln s + 1), as transformers' type "yarn" reads mscale a and mscale_all_dim b."""
    grown = 0.1 * math.log(factor) if factor > 1 else 0.0
    return (over * grown + 1) / (under * grown + 1)


def taken_further(rotary: Rotary, ratio: float, options: Options) -> Options:
    """The options with which the present type is written again with the larger factor `ratio`: its own ramp and m.

    An m that followed the present factor follows the new one; any other stays.
    """
    present, plain = present_options(rotary), Options()
    kept = {
        key: getattr(present, key)
        for key in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "truncate")
        if getattr(options, key) == getattr(plain, key)
    }
    if options.attention_factor is None and present.attention_factor is not None:
        kept["attention_factor"] = _further_attention_factor(rotary, ratio, present.attention_factor)
    return replace(options, **kept)


def _further_attention_factor(rotary: Rotary, ratio: float, present: float) -> float | None:
    settings = dict(rotary.present_settings)
    if settings.get("attention_factor") is None:
        return mscale_attention_factor(ratio, float(settings["mscale"]), float(settings["mscale_all_dim"]))
    own = by_parts.yarn_attention_factor(float(settings["factor"]))
    return None if math.isclose(present, own, rel_tol=1e-6) else present
