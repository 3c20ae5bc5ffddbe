"""Settings in layers: YAML files over typed defaults, and dotted overrides over the files.

A file may build on others with ``extends``. Unknown keys are refused with the nearest known one, and every
message names the file or the override that holds the fault.
"""

import contextlib
import difflib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from leukofold.containment import has_control, shown
from leukofold.errors import UserError
from leukofold.plainyaml import MOST_NESTED, PlainYamlError, read_yaml

Schema = TypeVar("Schema", bound=BaseModel)


class Section(BaseModel):
    """A part of some settings: immutable, and without room for misspelt keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def load_layers(schema: type[Schema], paths: Sequence[Path], overrides: Sequence[str] = ()) -> Schema:
    """Reads settings.

    Args:
        schema: What they are to be.
        paths: YAML files; later ones win over earlier ones.
        overrides: ``dotted.key=value`` strings, the value in YAML; they win over the files.

    Returns:
        The settings.

    Raises:
        UserError: A file is missing or no YAML mapping (``leukofold.plainyaml`` says what is read), a key is unknown,
            or a value does not fit.
    """
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for path in paths:
        merged = _merge(merged, _read_layer(path, (), origins))
    for override in overrides:
        layer = _parse_override(override)
        origins.update(dict.fromkeys(_leaves(layer), f"--set {shown(override, 200)}"))
        merged = _merge(merged, layer)
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, origins, schema)) from None


def _read_layer(path: Path, ancestors: tuple[Path, ...], origins: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Reads one YAML file on top of the files that it extends; notes in ``origins`` which file set each key."""
    real = Path(os.path.realpath(path))  # resolve() raises where links go round
    if real in ancestors:
        raise UserError(f"{path}: the files under 'extends' lead back to this one; break the circle")
    try:
        loaded = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such configuration file; the ready ones lie in configs/") from None
    except OSError as error:
        raise UserError(f"{shown(str(path), 200)}: not readable ({error.strerror}); name another file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not valid YAML: not UTF-8; save it as UTF-8") from None
    except PlainYamlError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    layer = loaded if loaded is not None else {}
    if not isinstance(layer, dict):
        raise UserError(f"{path}: a configuration is a YAML mapping of sections, this is a {type(layer).__name__}")
    parents = layer.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"{path}: extends: expected a file or a list of files, got {shown(repr(parents), 200)}")
    if any(has_control(parent) for parent in parents):
        raise UserError(f"{path}: extends: a control character in {shown(repr(parents), 200)}; take it out")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = _merge(merged, _read_layer(path.parent / parent, (*ancestors, real), origins))
    origins.update(dict.fromkeys(_leaves(layer), str(path)))
    return _merge(merged, layer)


def _parse_override(override: str) -> dict[str, Any]:
    """Turns ``a.b=value`` into ``{"a": {"b": value}}``."""
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MOST_NESTED:
        raise UserError(f"--set {shown(override, 200)}: write it as dotted.key=value, such as --set training.epochs=3")
    try:
        parsed = read_yaml(value)
    except PlainYamlError as error:
        raise UserError(f"--set {shown(override, 200)}: the value is not valid YAML: {error}") from None
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-4, without a point, as a string
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    layer: dict[str, Any] = {parts[-1]: parsed}
    for part in reversed(parts[:-1]):
        layer = {part: layer}
    return layer


def _merge(base: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """Lays ``delta`` over ``base``: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in delta.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _leaves(layer: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of each key of a nested mapping, sections included."""
    for key, value in layer.items():
        path = (*prefix, str(key))
        yield path
        if isinstance(value, Mapping):
            yield from _leaves(value, path)


def _explain(error: ValidationError, origins: Mapping[tuple[str, ...], str], schema: type[BaseModel]) -> str:
    """Says in one line what is wrong with the first bad key, where it stands and what would fit."""
    first = error.errors()[0]
    location = tuple(str(part) for part in first["loc"])
    known = max((loc for loc in origins if loc == location[: len(loc)]), key=len, default=())
    where = origins.get(known, "configuration")
    key = shown(".".join(known or location), 200)
    if first["type"] == "extra_forbidden":
        siblings = _known_keys(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], siblings, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(siblings)}"
        return f"{where}: unknown key '{key}'; {hint}"
    fault = shown(first["msg"].removeprefix("Value error, "), 500)
    return f"{where}: {f'{key}: ' if key else ''}{fault}, got {shown(repr(first['input']), 200)}"


def _known_keys(model: type[BaseModel], section: tuple[str, ...]) -> list[str]:
    """Returns the keys of the section at this path."""
    parts = iter(section)
    for part in parts:
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if field is None or inner is None:
            return []
        if get_origin(field.annotation) is dict:  # sections under names of the user's choice
            next(parts, None)
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Finds the section's class in a field's annotation, such as ``RenderSpec | None``."""
    if get_origin(annotation) in (Union, types.UnionType, dict):
        return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
