"""A run's settings: typed defaults, YAML deltas over them, dotted overrides on the command line.

A configuration file holds only what differs from the defaults below or from the file it ``extends`` (see
``leukofold.layers``). The resolved whole is saved with every run.
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from leukofold.layers import Section, load_layers
from leukofold.rendering.spec import RenderSpec

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"


IRRELEVANT = (
    "data.root",
    "data.external.*.root",
    "data.domains.*.root",
    "data.cache",
    "data.workers",
    "training.trackers",
    "training.nonfinite_loss",  # without such a loss both are the same, and with one a run by stop has no result
)
"""Keys that change no result: runs that differ in them alone are the same run."""


def is_irrelevant(dotted: str) -> bool:
    """Tells whether a key, by its dotted name, changes no result."""
    return any(fnmatch.fnmatchcase(dotted, pattern) for pattern in IRRELEVANT)


class ExternalConfig(Section):
    """One external data set that expands the training data; its name is the key above it."""

    root: Path | None = Field(None, description="folder of the files as downloaded; null: input/external/<name>")
    classes: tuple[str, ...] | None = Field(
        None, description="classes to take, by the data set's own names; null: all that the competition has"
    )
    partial: bool = Field(False, description="take what is there: counts need not be the published ones")
    render: RenderSpec | None = Field(None, description="draw the images into root instead of reading a download")


class DomainConfig(Section):
    """Labelled images of another laboratory, a folder per class; its name is the key above it."""

    root: Path = Field(description="folder that holds a folder for each class")
    names: dict[str, str] = Field(
        {}, description="folder -> class, where they differ in more than case; an empty class leaves the folder out"
    )


class DataConfig(Section):
    """Which competition's files are read, and from where."""

    competition: str = Field("wbcbench", description="name of a module in leukofold.competitions")
    root: Path = Field(Path("input/wbcbench"), description="folder that holds the files as downloaded")
    render: RenderSpec | None = Field(None, description="draw the images into root instead of reading a download")
    splits: tuple[str, ...] | None = Field(
        None, min_length=1, description="the competition's splits whose labelled images are used; null: all"
    )
    modalities: tuple[str, ...] | None = Field(
        None, min_length=1, description="where there are several images of a cell: those that the network sees, in "
        "this order; null: all",
    )  # fmt: skip

    @field_validator("modalities")
    @classmethod
    def _each_once(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Refuses an image that stands twice."""
        if given is not None and len(set(given)) < len(given):
            raise ValueError("an image stands twice; name each once")
        return given

    external: Annotated[
        dict[str, ExternalConfig],
        BeforeValidator(lambda given: _without_false(given)),  # so that a delta can drop what it extends
    ] = Field({}, description="data sets to train on besides, by their module in leukofold.external; false drops one")
    domains: Annotated[dict[str, DomainConfig], BeforeValidator(lambda given: _without_false(given))] = Field(
        {},
        description="target domains by name: labelled images of other laboratories, in the hold-out always, so that no "
        "fold trains on them or is chosen by them; false drops one",
    )
    drop_issues: Path | None = Field(
        None,
        description="CSV of scripts/label_issues.py: its images are not trained on, but scored as given; {fold} "
        "in the path stands for the fold held out, whose list was made without it (folds.left_out)",
    )
    relabel_issues: Path | None = Field(
        None,
        description="such a CSV: its images are trained on under suggested_label, but scored as given",
    )
    cache: Path = Field(Path("cache"), description="folder for what can be recomputed from the input")
    workers: int | None = Field(
        None, ge=0, le=256, description="loader processes per process; null: one per core, 16 at most"
    )


Splits = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given), Field(min_length=1)
]
"""One name or several."""


class FoldsConfig(Section):
    """How labelled images are split for cross-validation."""

    count: int = Field(5, ge=1, le=100, description="number of folds K; at least 2, but for folds.by: split")
    by: Literal["group", "image", "split"] = Field(
        "group",
        description="group: patients never cross folds; image: they may; split: the competition's own splits, patients "
        "still on one side (image with splits: the same splits, patients on both sides)",
    )
    splits: tuple[str, ...] = Field(
        (), description="these splits of the competition are held out, a fold each; the others are trained on"
    )
    holdout: Annotated[float, Field(gt=0, le=0.5)] | Splits | None = Field(
        None,
        description="images that no fold trains on or is chosen by, scored by every fold's network: a share of the "
        "patients' images, such as 0.1, or one or several of the competition's splits by name",
    )
    seed: int = Field(0, ge=0, description="seed of the split, apart from the training's")
    external: Literal["split", "train"] = Field(
        "split",
        description="split: external images have folds too, so each is scored by networks that have not seen it, apart "
        "from the competition's; train: they are in every fold's training set and never scored, but for copies of "
        "the competition's images, which share their fold",
    )
    left_out: int | None = Field(
        None, ge=0, description="a fold that no network of the run sees: what is made of the run, such as a list of "
        "label issues, knows nothing of that fold's labels",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _count_splits(cls, given: Any) -> Any:
        """Makes as many folds as there are splits to hold out."""
        if isinstance(given, Mapping) and (given.get("by") == "split" or given.get("splits")):
            splits = given.get("splits")
            return {**given, "count": max(1, len(splits)) if isinstance(splits, (list, tuple)) else 1}
        return given

    @model_validator(mode="after")
    def _need_folds(self) -> "FoldsConfig":
        """Refuses settings that make no folds."""
        if (self.by == "split" and not self.splits) or len(set(self.splits)) < len(self.splits):
            raise ValueError("splits: name the competition's splits that are held out, each once")
        if self.by == "group" and self.splits:
            raise ValueError("splits: goes with by: split or image; set folds.splits=[] for other folds")
        if not self.splits and self.count < 2:
            raise ValueError(f"count: {self.count} is too few; give at least 2")
        both = [name for name in self.holdout_splits if name in self.splits]
        if both:
            raise ValueError(f"holdout: {both[0]} is a fold already; take it out of splits")
        return self

    @model_validator(mode="after")
    def _leave_out_a_fold_that_there_is(self) -> "FoldsConfig":
        """Refuses a fold that the split does not have."""
        if self.left_out is not None and self.left_out >= self.count:
            raise ValueError(f"left_out: {self.left_out} is no fold; there are 0 to {self.count - 1}")
        return self

    @property
    def holdout_splits(self) -> tuple[str, ...]:
        """The splits that are held out from all folds; none where a share is."""
        return () if self.holdout is None or isinstance(self.holdout, float) else self.holdout

    @property
    def numbers(self) -> list[int]:
        """The folds to train."""
        return [k for k in range(self.count) if k != self.left_out]


class Transform(Section):
    """One albumentations transform: its class name, and its arguments beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str


class DenoiseConfig(Section):
    """Adaptive non-local means, see ``leukofold.images.denoising``.

    Srivastava et al. 2026 give the noise estimate and the search distance; threshold, strength and patch size are
    chosen here.
    """

    threshold: float = Field(1.5, ge=0, description="noise below this, in grey levels, is left alone")
    strength: float = Field(1.6, gt=0, description="filter strength h over the noise's deviation")
    patch_size: Literal[1, 3, 5, 7, 9] = Field(3, description="side of the compared patches, pixels")


class ImageConfig(Section):
    """From a decoded image to the network's input."""

    denoise: DenoiseConfig | None = Field(None, description="denoise, once, into the image cache; {}: the defaults")

    stain: Literal["macenko", "reinhard", "light"] | None = Field(
        None,
        description="normalise the stain of each image, once, into the image cache: by Macenko's or Reinhard's method "
        "to a fixed reference; light: only the background, to a neutral white",
    )
    crop: int | None = Field(None, ge=16, description="side of the centre square kept first, pixels; null: all")
    crops: dict[str, Annotated[int, Field(ge=16)] | None] = Field(
        {}, description="such a side by split or target domain, in place of crop: brings cells to one scale"
    )
    size: int = Field(224, ge=16, le=2048, description="side of the prepared image, pixels")
    input_size: int | None = Field(
        None,
        ge=16,
        description="side of the network's input where it is smaller: scoring takes the centre, training crops by "
        "image.augment; null: size",
    )
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
        description="albumentations transforms of the training images, in order, and our HEDJitter of the stains",
    )

    @model_validator(mode="after")
    def _input_fits(self) -> "ImageConfig":
        """Refuses a centre that is larger than the image."""
        if self.input_size is not None and self.input_size > self.size:
            raise ValueError(f"input_size: {self.input_size} is more than size {self.size}; lower it")
        crops = any("Crop" in transform.name for transform in self.augment)
        if self.side < self.size and not crops:
            raise ValueError(f"input_size: training has to crop to {self.side} too; add RandomCrop to image.augment")
        return self

    @property
    def side(self) -> int:
        """Side of the network's input, pixels."""
        return self.size if self.input_size is None else self.input_size


class ModelConfig(Section):
    """The network: a timm backbone and a head."""

    backbone: str = Field(
        "convnextv2_tiny.fcmae_ft_in22k_in1k",
        description="name of a timm model, or dinobloom_small, _base, _large or _giant",
    )
    pretrained: bool | Path = Field(True, description="true: the hub's weights; false: none; or a local weights file")
    head: Literal["linear", "mlp"] = Field("linear", description="mlp: blocks of Linear-ReLU-Dropout, then Linear")
    hidden: tuple[int, ...] = Field((512, 256, 128, 64), description="widths of the mlp head's blocks")
    fusion: Literal["early", "mimo"] = Field(
        "early",
        description="where there are several images of a cell (data.modalities), one network sees their colours side "
        "by side; early: it has one head; mimo: a head for each image, trained on images of independent cells, "
        "averaged where cells are scored (MM-MIMO). Late fusion is no network but a blend of runs of one image each",
    )
    one_logit: bool = Field(False, description="two classes from one logit, a binary network, instead of from two")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in the head")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the backbone")
    backbone_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout rate inside the backbone, where timm's has one (drop_rate), as in VGG"
    )
    normalisation: Literal["own", "frozen", "group"] = Field(
        "own",
        description="batch normalisation of the backbone; own: as it is; frozen: its statistics and its weights stay "
        "as they were loaded; group: group normalisation in its place",
    )
    norm_groups: int = Field(32, ge=1, description="groups of group normalisation, or the nearest that divides")
    frozen: tuple[str, ...] = Field(
        (),
        description="modules that do not train, by name or pattern, such as backbone or backbone.layer1*: neither "
        "their weights nor their batch statistics move, and their dropout is off",
    )
    channels_last: bool | None = Field(
        None,
        description="keep an image's channels together in memory: faster for most networks with batch normalisation, "
        "of no use to others; null: for those that have it",
    )


class SvmConfig(Section):
    """A support vector machine on handcrafted features, in the network's place: shape, texture and colour."""

    c: float = Field(10.0, gt=0, description="penalty C of a training image on the wrong side")
    gamma: Annotated[float, Field(gt=0)] | Literal["scale"] = Field(
        "scale", description="width of the RBF kernel; scale: 1 / number of (standardised) features"
    )


class SamplerConfig(Section):
    """How often each training image is drawn."""

    kind: Literal["uniform", "effective_number"] = "effective_number"
    beta: float = Field(0.9999, ge=0, lt=1, description="effective_number's beta; 0: no weights, towards 1: 1 / n")


class LossConfig(Section):
    """What training minimises."""

    kind: Literal["cross_entropy", "focal"] = "focal"
    gamma: float = Field(2.0, ge=0, description="focusing exponent of the focal loss")
    alpha: float = Field(0.25, gt=0, le=1, description="factor of the focal loss")
    weights: Literal["none", "effective_number", "inverse_frequency"] = Field(
        "none",
        description="effective_number: the class-balanced form, each class weighted by 1 / E_n; inverse_frequency: by "
        "n_0 / n_k, so that of two classes the positive one gets the weight n_neg / n_pos of weighted BCE",
    )
    beta: float = Field(0.9999, ge=0, lt=1, description="effective_number's beta, apart from the sampler's")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")


class DistillationConfig(Section):
    """Knowledge distillation (Hinton et al. 2015): the loss gets T^2 KL(teacher || student), both softened by T."""

    teachers: tuple[str, ...] = Field(
        (),
        description="runs by name, of the same data and folds; none: no distillation. Each fold is taught by their "
        "networks that have not seen it either, live, on the same augmented images. Several teach a single head by the "
        "mean of their probabilities; with model.fusion: mimo each teaches the head of the one image that it sees",
    )
    temperature: float = Field(4.0, gt=0, description="T, which softens: logits are divided by it before the softmax")


class MixingConfig(Section):
    """CutMix and MixUp: a batch gets one of them, or none, each with its own probability."""

    cutmix: float = Field(0.0, ge=0, le=1, description="probability of CutMix, per batch")
    cutmix_alpha: float = Field(1.0, gt=0, description="both parameters of the Beta distribution of its area")
    mixup: float = Field(0.0, ge=0, le=1, description="probability of MixUp, per batch")
    mixup_alpha: float = Field(0.8, gt=0, description="both parameters of the Beta distribution of its share")

    @model_validator(mode="after")
    def _one_at_a_time(self) -> "MixingConfig":
        """Refuses probabilities of two exclusive events that exceed 1 together."""
        if self.cutmix + self.mixup > 1:
            raise ValueError("cutmix and mixup exclude each other, so their probabilities add up to 1 at most")
        return self


class ParameterGroup(Section):
    """Parameters with a learning rate of their own, named by a pattern or by their depth in the backbone."""

    match: str | None = Field(None, description="pattern of parameter names, such as head.* or backbone.layer4.*")
    depth: tuple[int, ...] | None = Field(
        None, description="stages of the backbone as timm counts them: 0 the stem, 1 the first stage, and so on"
    )
    lr: float = Field(gt=0, description="their highest learning rate, in place of optimizer.lr")

    @model_validator(mode="after")
    def _one_way(self) -> "ParameterGroup":
        """Refuses a group that is named in both ways, or in none."""
        if (self.match is None) == (self.depth is None):
            raise ValueError("name the group's parameters by match or by depth, not both")
        return self


class OptimizerConfig(Section):
    """How weights move; ``name`` is any optimiser of timm."""

    name: str = "adamw"
    lr: float = Field(5e-4, gt=0, description="highest learning rate")
    groups: tuple[ParameterGroup, ...] = Field(
        (), description="learning rates of parts of the network; the first group that names a parameter counts"
    )
    schedule: Literal["cosine", "step", "plateau"] = Field(
        "cosine",
        description="cosine: down to min_lr; step: times decay_rate every decay_epochs; plateau: times decay_rate when "
        "the validation loss has not fallen for more than decay_epochs",
    )
    min_lr: float = Field(5e-6, ge=0, description="learning rate at the end of the cosine, and a plateau's lowest")
    decay_rate: float = Field(0.1, gt=0, lt=1, description="step and plateau: factor of the learning rate")
    decay_epochs: int = Field(2, ge=0, description="step: epochs between two steps; plateau: epochs of patience")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up from min_lr")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; null: not clipped")

    @model_validator(mode="after")
    def _need_steps(self) -> "OptimizerConfig":
        """Refuses steps without end, and a warm-up where the schedule has none."""
        if self.schedule == "step" and not self.decay_epochs:
            raise ValueError("decay_epochs: steps need at least 1 epoch between them")
        if self.schedule == "plateau" and self.warmup_epochs:
            raise ValueError("warmup_epochs: a plateau has no warm-up; set it to 0")
        return self


class TrainingConfig(Section):
    """The length, the pace and the bookkeeping of training."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(32, ge=1, description="images per optimiser step, in total over all processes")
    accumulate: int = Field(1, ge=1, description="parts a batch is computed in, to save memory")
    patience: int = Field(10, ge=1, description="epochs without a better metric before training stops")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the weights' moving average; 0: no average")
    precision: Annotated[
        Literal["no", "fp16", "bf16", "auto"] | None,
        BeforeValidator(lambda value: "no" if value is False else value),  # YAML reads a bare no as false
    ] = Field(
        None,
        description="auto: bf16 on GPUs that compute in it, fp16 on others, no on CPUs; null: what accelerate launch "
        "was told",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="the epoch whose weights are kept; best: by the competition's metric on the held-out images; last: "
        "the last, so that nothing is chosen and training never stops early",
    )
    validate_with_tta: bool = Field(False, description="score each epoch with test-time augmentation, as at the end")
    cached_views: int = Field(
        0,
        ge=0,
        le=100,
        description="with a frozen backbone: augmented views of each image whose features are computed once and shared "
        "by all epochs, folds and seeds (by epochs alone where the backbone's weights are random: each fold and seed "
        "draws its own); 0: every epoch augments anew",
    )
    compile: bool = Field(False, description="torch.compile the network")
    nonfinite_loss: Literal["stop", "skip"] = Field(
        "stop",
        description="where a loss is not finite; stop: training ends, and the batch's images are named in "
        "nonfinite_loss.csv; skip: that optimiser step is left out, also where a gradient is not finite, and its "
        "images are named",
    )
    deterministic: bool = Field(True, description="the same command gives the same bits on the same machine")
    seed: int = Field(0, ge=0, description="seed of weights, sampling, augmentation and dropout")
    trackers: tuple[Literal["tensorboard"], ...] = Field((), description="trackers beside history.csv")

    @model_validator(mode="after")
    def _whole_parts(self) -> "TrainingConfig":
        """Refuses a batch that cannot be computed in so many parts."""
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided into accumulate: {self.accumulate} parts")
        return self


class InferenceConfig(Section):
    """How validation and test images are scored."""

    batch_size: int = Field(64, ge=1, description="images at a time, per process")
    tta: Literal["none", "dihedral", "rotations"] = Field(
        "dihedral",
        description="mean logits of several views; dihedral: the 8 flips and quarter turns; rotations: turns by "
        "equal angles, see below",
    )
    angles: int = Field(8, ge=1, le=360, description="rotations: their number, 360 / angles degrees apart")
    mirrored: bool = Field(True, description="rotations: each turn of the mirrored image too, twice as many views")
    border: Literal["reflect", "black"] = Field("reflect", description="rotations: what corners are filled with")
    interpolation: Literal["bilinear", "nearest"] = Field("bilinear", description="rotations: how pixels are moved")
    batch_statistics: Literal["training", "domain"] = Field(
        "training",
        description="of batch normalisation; domain: re-estimated, without labels, from all images that are scored "
        "together: a split, a target domain, the test images, or what predict.py is given",
    )
    statistics_prior: float = Field(
        0.0, ge=0, description="domain: images that the training's statistics count as beside the domain's"
    )


class Config(Section):
    """Everything that decides a run's result."""

    data: DataConfig = DataConfig()
    folds: FoldsConfig = FoldsConfig()
    image: ImageConfig = ImageConfig()
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    mixing: MixingConfig = MixingConfig()
    distillation: DistillationConfig = DistillationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    svm: SvmConfig | None = Field(None, description="a support vector machine in the network's place; {}: the defaults")

    @model_validator(mode="after")
    def _measured_once(self) -> "Config":
        """Refuses views of an image whose features are the same in every position."""
        if self.svm is not None and self.inference.tta != "none":
            raise ValueError("svm: an image is measured once, in whichever position; set inference.tta=none")
        return self

    @model_validator(mode="after")
    def _can_cache(self) -> "Config":
        """Refuses cached features that training would change."""
        if self.training.cached_views and "backbone" not in self.model.frozen:
            raise ValueError("training.cached_views: needs a backbone that stays as it is; set model.frozen=[backbone]")
        if self.training.cached_views and (self.mixing.cutmix or self.mixing.mixup):
            raise ValueError("training.cached_views: features of images cannot be mixed; set mixing to 0")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        """Refuses heads of their own where images are mixed or features cached, and teachers of what is no network."""
        if self.model.fusion == "mimo" and (self.training.cached_views or self.mixing.cutmix or self.mixing.mixup):
            raise ValueError(
                "model.fusion: mimo trains on independent cells; set training.cached_views and mixing to 0"
            )
        if self.distillation.teachers and (self.svm is not None or self.training.cached_views):
            raise ValueError("distillation: teachers see the images that a network trains on; name none")
        return self

    @model_validator(mode="after")
    def _keeps_its_word(self) -> "Config":
        """Refuses statistics that are not there to be re-estimated, and a last epoch that is chosen after all."""
        if self.training.keep == "last" and self.optimizer.schedule == "plateau":
            raise ValueError(
                "training.keep: last chooses nothing, but optimizer.schedule: plateau follows held-out images"
            )
        if self.inference.batch_statistics == "domain":
            if self.svm is not None or self.training.cached_views:
                raise ValueError(
                    "inference.batch_statistics: domain needs a network that sees the images; set training"
                )
            if self.model.normalisation == "group":
                raise ValueError("inference.batch_statistics: group normalisation has none; set training")
        return self

    @property
    def model_title(self) -> str:
        """What is trained, for people: the backbone's name, or the machine in its place."""
        return self.model.backbone if self.svm is None else "support vector machine"

    def resolved(self) -> dict[str, Any]:
        """Returns the whole configuration as plain JSON values."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Returns 16 hex digits that change with any key that can change a run's result."""
        return hashlib.sha256(json.dumps(_relevant(self.resolved()), sort_keys=True).encode()).hexdigest()[:16]


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Reads a run's configuration; see ``leukofold.layers.load_layers``.

    Args:
        paths: YAML files; later ones win over earlier ones.
        overrides: ``dotted.key=value`` strings, the value in YAML; they win over the files.

    Returns:
        The resolved configuration.
    """
    return load_layers(Config, paths, overrides)


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


def _relevant(resolved: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves out the keys that change no result."""
    return {
        key: _relevant(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in resolved.items()
        if not is_irrelevant(f"{prefix}{key}")
    }


def _without_false(given: Any) -> Any:
    """Drops a mapping's keys whose value is false; a key without value stands for the defaults."""
    if not isinstance(given, Mapping):
        return given
    return {key: {} if value is None else value for key, value in given.items() if value is not False}
