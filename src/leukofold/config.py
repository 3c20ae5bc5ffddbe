"""A run's settings: typed defaults, YAML deltas over them, dotted overrides on the command line.

A configuration file holds only what differs from the defaults below or from the file it ``extends``.
Unknown keys are refused with the nearest known one. The resolved whole is saved with every run.
"""

import contextlib
import difflib
import hashlib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from leukofold.errors import UserError
from leukofold.rendering.spec import RenderSpec

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"


IRRELEVANT = ("data.root", "data.cache", "data.workers", "training.trackers")
"""Keys that change no result: runs that differ in them alone are the same run."""


class _Section(BaseModel):
    """A part of the configuration: immutable, and without room for misspelt keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class DataConfig(_Section):
    """Which competition's files are read, and from where."""

    competition: str = Field("wbcbench", description="name of a module in leukofold.competitions")
    root: Path = Field(Path("input/wbcbench"), description="folder that holds the files as downloaded")
    render: RenderSpec | None = Field(None, description="draw the images into root instead of reading a download")
    cache: Path = Field(Path("cache"), description="folder for what can be recomputed from the input")
    workers: int | None = Field(
        None, ge=0, le=256, description="loader processes per process; null: one per core, 16 at most"
    )


class FoldsConfig(_Section):
    """How labelled images are split for cross-validation."""

    count: int = Field(5, ge=2, le=100, description="number of folds K")
    by: Literal["group", "image"] = Field("group", description="group: patients never cross folds; image: they may")
    seed: int = Field(0, ge=0, description="seed of the split, apart from the training's")


class Transform(_Section):
    """One albumentations transform: its class name, and its arguments beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str


class ImageConfig(_Section):
    """From a decoded image to the network's input."""

    crop: int | None = Field(None, ge=16, description="side of the centre square kept first, pixels; null: all")
    size: int = Field(224, ge=16, le=2048, description="side of the network's input, pixels")
    mean: tuple[float, float, float] | None = Field(None, description="RGB mean in [0, 1]; null: the backbone's own")
    std: tuple[float, float, float] | None = Field(
        None, description="RGB deviation in [0, 1]; null: the backbone's own"
    )
    augment: tuple[Transform, ...] = Field(
        (
            Transform(name="D4", p=1.0),
            Transform(name="Affine", rotate=[-45, 45], translate_percent=[-0.05, 0.05], border_mode=2, p=0.5),
            Transform(name="RandomBrightnessContrast", brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            Transform(name="GaussNoise", std_range=[0.01, 0.05], p=0.25),
            Transform(name="GaussianBlur", blur_limit=[3, 5], p=0.25),
        ),
        description="albumentations transforms of the training images, in order",
    )


class ModelConfig(_Section):
    """The network: a timm backbone and a head."""

    backbone: str = Field("convnextv2_tiny.fcmae_ft_in22k_in1k", description="name of a timm model")
    pretrained: bool | Path = Field(True, description="true: the hub's weights; false: none; or a local weights file")
    head: Literal["linear", "mlp"] = Field("linear", description="mlp: blocks of Linear-ReLU-Dropout, then Linear")
    hidden: tuple[int, ...] = Field((512, 512, 512, 512), description="widths of the mlp head's blocks")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in the head")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the backbone")


class SamplerConfig(_Section):
    """How often each training image is drawn."""

    kind: Literal["uniform", "effective_number"] = "effective_number"
    beta: float = Field(0.9999, ge=0, lt=1, description="effective_number's beta; 0: no weights, towards 1: 1 / n")


class LossConfig(_Section):
    """What training minimises."""

    kind: Literal["cross_entropy", "focal"] = "focal"
    gamma: float = Field(2.0, ge=0, description="focusing exponent of the focal loss")
    alpha: float = Field(0.25, gt=0, le=1, description="factor of the focal loss")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")


class OptimizerConfig(_Section):
    """How weights move; ``name`` is any optimiser of timm."""

    name: str = "adamw"
    lr: float = Field(5e-4, gt=0, description="highest learning rate")
    min_lr: float = Field(5e-6, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up from min_lr")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null: not clipped")


class TrainingConfig(_Section):
    """The length, the pace and the bookkeeping of training."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(32, ge=1, description="images per optimiser step, in total over all processes")
    accumulate: int = Field(1, ge=1, description="parts a batch is computed in, to save memory")
    patience: int = Field(10, ge=1, description="epochs without a better metric before training stops")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the weights' moving average; 0: no average")
    precision: Annotated[
        Literal["no", "fp16", "bf16"] | None,
        BeforeValidator(lambda value: "no" if value is False else value),  # YAML reads a bare no as false
    ] = Field(None, description="null: what accelerate launch was told")
    compile: bool = Field(False, description="torch.compile the network")
    deterministic: bool = Field(True, description="the same command gives the same bits on the same machine")
    seed: int = Field(0, ge=0, description="seed of weights, sampling, augmentation and dropout")
    trackers: tuple[Literal["tensorboard"], ...] = Field((), description="trackers beside history.csv")


class InferenceConfig(_Section):
    """How validation and test images are scored."""

    batch_size: int = Field(64, ge=1, description="images at a time, per process")
    tta: Literal["none", "dihedral"] = Field("dihedral", description="dihedral: mean logits of the 8 flips and turns")


class Config(_Section):
    """Everything that decides a run's result."""

    data: DataConfig = DataConfig()
    folds: FoldsConfig = FoldsConfig()
    image: ImageConfig = ImageConfig()
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()

    def resolved(self) -> dict[str, Any]:
        """Returns the whole configuration as plain JSON values."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Returns 16 hex digits that change with any key that can change a run's result."""
        resolved = self.resolved()
        for dotted in IRRELEVANT:
            section, key = dotted.split(".")
            del resolved[section][key]
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:16]


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Reads a run's configuration.

    Args:
        paths: YAML files; later ones win over earlier ones.
        overrides: ``dotted.key=value`` strings, the value in YAML; they win over the files.

    Returns:
        The resolved configuration.

    Raises:
        UserError: A file is missing or no YAML mapping, a key is unknown, or a value does not fit.
    """
    merged: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for path in paths:
        merged = _merge(merged, _read_layer(path, (), origins))
    for override in overrides:
        layer = _parse_override(override)
        origins.update(dict.fromkeys(_leaves(layer), f"--set {override}"))
        merged = _merge(merged, layer)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, origins)) from None


def run_name(paths: Sequence[Path]) -> str:
    """Names a run after its configuration files.

    Args:
        paths: The run's configuration files.

    Returns:
        Their paths below ``configs/`` without suffix (elsewhere: the file name's stem), joined by ``+``.
    """
    names = []
    for path in paths:
        absolute = path.resolve()
        inside = absolute.is_relative_to(CONFIG_FOLDER)
        names.append(absolute.relative_to(CONFIG_FOLDER).with_suffix("").as_posix() if inside else absolute.stem)
    return "+".join(names)


def _read_layer(path: Path, ancestors: tuple[Path, ...], origins: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Reads one YAML file on top of the files that it extends; notes in ``origins`` which file set each key."""
    if path.resolve() in ancestors:
        raise UserError(f"{path}: the files under 'extends' lead back to this one; break the circle")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such configuration file; the ready ones lie in configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    layer = loaded if loaded is not None else {}
    if not isinstance(layer, dict):
        raise UserError(f"{path}: a configuration is a YAML mapping of sections, this is a {type(layer).__name__}")
    parents = layer.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"{path}: extends: expected a file or a list of files, got {parents!r}")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = _merge(merged, _read_layer(path.parent / parent, (*ancestors, path.resolve()), origins))
    origins.update(dict.fromkeys(_leaves(layer), str(path)))
    return _merge(merged, layer)


def _parse_override(override: str) -> dict[str, Any]:
    """Turns ``a.b=value`` into ``{"a": {"b": value}}``."""
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {override}: write it as dotted.key=value, such as --set training.epochs=3")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
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


def _explain(error: ValidationError, origins: Mapping[tuple[str, ...], str]) -> str:
    """Says in one line what is wrong with the first bad key, where it stands and what would fit."""
    first = error.errors()[0]
    location = tuple(str(part) for part in first["loc"])
    known = max((loc for loc in origins if loc == location[: len(loc)]), key=len, default=())
    where = origins.get(known, "configuration")
    key = ".".join(known or location)
    if first["type"] == "extra_forbidden":
        siblings = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], siblings, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(siblings)}"
        return f"{where}: unknown key '{key}'; {hint}"
    return f"{where}: {key}: {first['msg']}, got {first['input']!r}"


def _known_keys(section: tuple[str, ...]) -> list[str]:
    """Returns the keys of the section at this path."""
    model: type[BaseModel] = Config
    for part in section:
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Finds the section's class in a field's annotation, such as ``RenderSpec | None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
