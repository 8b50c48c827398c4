"""Settings such as ``text.num_hidden_layers=4`` applied to a ``config.json``, to make reduced models from real ones."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lluda.errors import InvalidRequest

# Sections of Qwen3-Omni whose keys a path may start with; a name not found at the top is looked for in these.
_OUTER_SECTIONS = ("thinker_config", "talker_config")
_SHOWN_NEIGHBOURS = 12

# Keys that transformers 4 and 5 name differently; either name sets the one that the config has.
_OTHER_NAMES = {"num_experts": "num_local_experts", "torch_dtype": "dtype"}
_OTHER_NAMES |= {new: old for old, new in _OTHER_NAMES.items()}

# Settings of rotary positions that are the model's own, however they are scaled.
_UNSCALED = ("rope_theta", "mrope_section", "mrope_interleaved", "interleaved", "partial_rotary_factor")


def override_config(config: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of ``config`` with each ``PATH=VALUE`` of ``settings`` applied in turn.

    PATH is dotted; ``_config`` may be left out at the end of a section's name, and Omni's ``thinker_config.`` and
    ``talker_config.`` before it: ``text.``, ``audio.``, ``vision.``, ``talker.text.``, ``code_predictor.``,
    ``code2wav.``. In a config without sections ``text.`` is the config itself. VALUE is JSON, and anything that is not
    JSON a string. It must be of the kind it replaces (null may become anything); ``+PATH=VALUE`` lifts that rule, and
    creates the key and its sections where they do not exist. A key that transformers 4 and 5 name differently
    (``num_experts``, ``num_local_experts``) may be given by either name.

    If ``num_hidden_layers`` changes and its section lists ``layer_types`` of the old length, that list is cut, or
    extended by its last entry.

    Raises:
        InvalidRequest: a setting without ``=``, an unknown path (with its neighbours), a value of another kind.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for setting in settings:
        _apply(result, setting)
    return result


def with_rope_scaling(config: Mapping[str, Any], scaling: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of ``config`` with ``scaling`` in place of its own scaling of positions, if it is not None: an object as
    ``rope_scaling`` of a config.json holds it, or that as JSON. The base and axes stay; of an Omni model it is the
    thinker's. InvalidRequest: not an object."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    if scaling is None:
        return result
    given = _value(scaling, "rope-scaling") if isinstance(scaling, str) else scaling
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            "rope_scaling must be a JSON object such as "
            '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, '
            f"not {given!r:.80}"
        )
    text = result
    for name in ("thinker_config", "text_config"):
        text = text[name] if isinstance(text.get(name), dict) else text
    own: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        before = text.pop(name, None)
        own |= before if isinstance(before, dict) else {}
    if "original_max_position_embeddings" in given:
        text.pop("original_max_position_embeddings", None)
    text["rope_scaling"] = {name: value for name, value in own.items() if name in _UNSCALED} | dict(given)
    return result


def _apply(config: dict[str, Any], setting: str) -> None:
    target, separator, text = setting.partition("=")
    new = target.startswith("+")
    path = target.removeprefix("+").strip()
    parts = path.split(".")
    if not separator or not all(parts):
        raise InvalidRequest(f"--set {setting:.80}: must be PATH=VALUE, as in text.num_hidden_layers=4")
    value = _value(text.strip(), f"set {setting}")
    section = _section(config, parts[:-1], path, create=new)
    key = parts[-1]
    if key not in section and _OTHER_NAMES.get(key) in section:
        key = _OTHER_NAMES[key]
    if not new:
        if key not in section:
            raise _unknown(path, key, section)
        _check_kind(path, section[key], value)
    before = section.get(key)
    section[key] = value
    if key == "num_hidden_layers":
        _fit_layer_types(section, before, value)


def _section(config: dict[str, Any], parts: list[str], path: str, *, create: bool) -> dict[str, Any]:
    """The object that the section names ``parts`` lead to."""
    node = config
    for depth, part in enumerate(parts):
        found = _child(node, part, top=depth == 0)
        if found is None:
            if not create or node.get(part) is not None:
                raise _unknown(path, part, node)
            found = node[part] = {}
        node = found
    return node


def _child(node: dict[str, Any], part: str, *, top: bool) -> dict[str, Any] | None:
    places = [node]
    if top:
        places += [node[name] for name in _OUTER_SECTIONS if isinstance(node.get(name), dict)]
    for place in places:
        for name in (part, f"{part}_config"):
            if isinstance(place.get(name), dict):
                child: dict[str, Any] = place[name]
                return child
    return node if top and part == "text" and part not in node else None


def _value(text: str, option: str) -> Any:
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except OverflowError:
        raise InvalidRequest(f"--{option:.84}: the value holds a number that is not finite") from None
    except (ValueError, RecursionError):
        if text[:1] in ("{", "[", '"'):
            raise InvalidRequest(f"--{option:.84}: the value is not valid JSON") from None
        return text


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise OverflowError(text)
    return value


def _kind(value: Any) -> str:
    for kind, types in (
        ("true or false", bool),
        ("a number", (int, float)),
        ("a string", str),
        ("a list", list),
        ("an object", dict),
    ):
        if isinstance(value, types):
            return kind
    return "null"


def _check_kind(path: str, old: Any, new: Any) -> None:
    if "null" not in (_kind(old), _kind(new)) and _kind(old) != _kind(new):
        raise InvalidRequest(
            f"--set {path}: must be {_kind(old)}, as {old!r:.60} is; got {new!r:.60}. Write +{path}=… to insist"
        )


def _unknown(path: str, part: str, section: Mapping[str, Any]) -> InvalidRequest:
    if part in section:
        return InvalidRequest(f"--set {path}: {part} is no section but {section[part]!r:.60}")
    return InvalidRequest(
        f"--set {path}: the config has no {part!r:.60} there; beside it are {_listed(part, section)}. "
        f"Write +{path}=… for a new key"
    )


def _listed(part: str, section: Iterable[str]) -> str:
    """The keys beside ``part``, the most similar first, as many as a line holds."""
    names = list(section)
    close = get_close_matches(part, names, n=5, cutoff=0.4)
    ordered = close + [name for name in names if name not in close]
    more = len(ordered) - _SHOWN_NEIGHBOURS
    return (", ".join(ordered[:_SHOWN_NEIGHBOURS]) or "no keys") + (f" and {more} more" if more > 0 else "")


def _fit_layer_types(section: dict[str, Any], before: Any, after: Any) -> None:
    kinds = section.get("layer_types")
    if not isinstance(kinds, list) or not kinds or len(kinds) != before or type(after) is not int or after < 1:
        return
    # A bound, so that a typing error is reported by the config's reader and does not fill the memory.
    section["layer_types"] = (kinds + kinds[-1:] * min(after - len(kinds), 1 << 16))[:after]
