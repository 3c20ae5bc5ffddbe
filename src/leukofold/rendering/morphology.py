"""What the cells of each class look like, as numbers.

Lengths are pixels of a 368-pixel image (about 9 pixels per micrometre), concentrations are optical densities in a
stain's strongest channel, areas are fractions of the cell's area. Granulocytes are not five types but one
maturation: their rows are stages, and a cell lies somewhere between them.
"""

from dataclasses import astuple, dataclass, replace

import numpy as np

CLASS_NAMES: dict[str, str] = {
    "BA": "basophil",
    "BL": "blast",
    "BNE": "band neutrophil",
    "EO": "eosinophil",
    "LY": "lymphocyte",
    "MMY": "metamyelocyte",
    "MO": "monocyte",
    "MY": "myelocyte",
    "PC": "plasma cell",
    "PLY": "prolymphocyte",
    "PMY": "promyelocyte",
    "SNE": "segmented neutrophil",
    "VLY": "variant lymphocyte",
}
"""WBCBench's 13 classes in their fixed (alphabetical) order."""


@dataclass(frozen=True)
class Morphology:
    """Measures of a cell; the defaults describe a plain round cell without granules.

    Attributes:
        diameter: cell diameter in pixels.
        elongation: ratio of the cell's axes.
        irregularity: relative amplitude of the waves of the cell's outline.
        fray: how far the outline runs out in fine processes; 0 smooth, 0.3 frayed.
        nucleus_area: area of the nucleus over area of the cell.
        length: length of the nucleus' axis in half-widths (see ``shapes.bent_chain``).
        bend: angle in radians that this axis turns through.
        lobes: number of lobes; a fraction is the chance of one more.
        constriction: depth of the waists between lobes, 0 to 1.
        eccentricity: 0 = nucleus in the middle, 1 = touching the cell's edge.
        chromatin: mean concentration of nuclear stain.
        lumps: how far the nucleus' outline is knobbly or folded, 0 to 2.
        gaps: relative depth of the pale gaps between chromatin strands.
        clumps: relative contrast of coarse chromatin clumps.
        clump_size: grain of these clumps in pixels.
        clock_face: relative contrast of clumps along the nuclear membrane.
        nucleoli: expected number of nucleoli.
        nucleolus_radius: their mean radius in pixels.
        basophilia: concentration of blue cytoplasmic stain.
        acidophilia: concentration of pink cytoplasmic stain.
        mottle: relative contrast of the cytoplasm's fine texture.
        skirting: relative darkening of the cytoplasm towards its edge.
        hof: depth of the pale zone beside the nucleus, 0 to 1.
        vacuoles: expected number of vacuoles.
        pressed: expected number of red cells that indent the cell.
        specific: concentration of fine lilac neutrophil granules.
        azurophil: concentration of reddish-purple primary granules.
        eosinophil: concentration of large orange-red granules.
        basophil: concentration of coarse dark granules, which also cover the nucleus.
    """

    diameter: float
    elongation: float = 1.06
    irregularity: float = 0.02
    fray: float = 0.05
    nucleus_area: float = 0.5
    length: float = 0.4
    bend: float = 1.0
    lobes: float = 1.0
    constriction: float = 0.0
    eccentricity: float = 0.4
    chromatin: float = 1.7
    lumps: float = 0.6
    gaps: float = 0.3
    clumps: float = 0.10
    clump_size: float = 3.0
    clock_face: float = 0.0
    nucleoli: float = 0.0
    nucleolus_radius: float = 6.0
    basophilia: float = 0.4
    acidophilia: float = 0.0
    mottle: float = 0.15
    skirting: float = 0.1
    hof: float = 0.0
    vacuoles: float = 0.0
    pressed: float = 0.0
    specific: float = 0.0
    azurophil: float = 0.0
    eosinophil: float = 0.0
    basophil: float = 0.0


MATURATION: dict[str, Morphology] = {
    "PMY": Morphology(
        diameter=158, nucleus_area=0.60, length=0.5, eccentricity=0.7, chromatin=1.75, gaps=0.62, clumps=0.06,
        nucleoli=1.0, nucleolus_radius=8, basophilia=0.36, acidophilia=0.10, mottle=0.28, hof=0.4, azurophil=1.45,
        specific=0.1,
    ),
    "MY": Morphology(
        diameter=143, nucleus_area=0.47, length=0.7, eccentricity=0.8, chromatin=1.84, gaps=0.62, clumps=0.09,
        basophilia=0.25, acidophilia=0.12, mottle=0.28, hof=0.2, azurophil=0.75, specific=0.45, nucleoli=0.1,
    ),
    "MMY": Morphology(
        diameter=142, nucleus_area=0.41, length=3.3, bend=2.9, eccentricity=0.7, chromatin=1.94, gaps=0.62,
        clumps=0.10, basophilia=0.14, acidophilia=0.15, mottle=0.26, azurophil=0.35, specific=0.55, lobes=2,
        constriction=0.15, vacuoles=0.3,
    ),
    "BNE": Morphology(
        diameter=138, nucleus_area=0.36, length=5.4, bend=3.2, eccentricity=0.4, chromatin=2.06, gaps=0.60,
        clumps=0.11, basophilia=0.03, acidophilia=0.22, mottle=0.24, azurophil=0.15, specific=0.46, lobes=3,
        constriction=0.28, vacuoles=0.4,
    ),
    "SNE": Morphology(
        diameter=138, nucleus_area=0.34, length=7.4, bend=3.9, eccentricity=0.3, chromatin=2.14, gaps=0.58,
        clumps=0.11, basophilia=0.02, acidophilia=0.24, mottle=0.24, azurophil=0.08, specific=0.42, lobes=3.4,
        constriction=0.93, vacuoles=0.4,
    ),
}  # fmt: skip
"""Stages of granulocyte maturation, youngest first."""

MATURATION_SPREAD = 0.33
"""Standard deviation, in stages, of a cell's maturity around its class: about 6 % look like each neighbour."""

CELLS: dict[str, Morphology] = {
    "BA": Morphology(
        diameter=128, nucleus_area=0.46, length=3.4, bend=2.4, lobes=2.5, constriction=0.5, chromatin=1.60, fray=0.25,
        gaps=0.36, clumps=0.12, basophilia=0.10, acidophilia=0.32, basophil=1.7, eccentricity=0.2, irregularity=0.025,
    ),
    "BL": Morphology(
        diameter=148, nucleus_area=0.75, length=0.5, chromatin=1.46, gaps=0.36, clumps=0.04, nucleoli=2.6,
        nucleolus_radius=8, basophilia=0.64, skirting=0.35, mottle=0.16, irregularity=0.028, eccentricity=0.6,
        lumps=0.8,
    ),
    "EO": Morphology(
        diameter=140, nucleus_area=0.31, length=6.2, bend=2.4, lobes=2.25, constriction=0.92, chromatin=2.02,
        gaps=0.62, clumps=0.11, basophilia=0.05, acidophilia=0.10, eosinophil=0.56, eccentricity=0.65, fray=0.08,
    ),
    "LY": Morphology(
        diameter=98, nucleus_area=0.74, length=0.5, chromatin=2.05, gaps=0.41, clumps=0.10, clump_size=4.0,
        basophilia=0.46, acidophilia=0.06, mottle=0.25, irregularity=0.03, eccentricity=0.8, fray=0.16,
    ),
    "MO": Morphology(
        diameter=164, elongation=1.14, irregularity=0.055, fray=0.18, nucleus_area=0.45, length=2.2, bend=2.5, lobes=2,
        constriction=0.1, lumps=1.7, eccentricity=0.35, chromatin=1.76, gaps=0.66, clumps=0.05, basophilia=0.32,
        acidophilia=0.10, mottle=0.30, azurophil=0.20, vacuoles=7,
    ),
    "PC": Morphology(
        diameter=142, elongation=1.24, nucleus_area=0.31, length=0.3, eccentricity=0.95, chromatin=1.90, gaps=0.24,
        clumps=0.12, clump_size=5.0, clock_face=0.38, basophilia=0.85, mottle=0.15, hof=0.75, vacuoles=0.8,
        irregularity=0.025, lumps=0.3,
    ),
    "PLY": Morphology(
        diameter=126, nucleus_area=0.68, length=0.3, chromatin=1.86, gaps=0.36, clumps=0.11, clump_size=4.0,
        nucleoli=1.1, nucleolus_radius=11, basophilia=0.36, eccentricity=0.6,
    ),
    "VLY": Morphology(
        diameter=168, elongation=1.14, irregularity=0.055, nucleus_area=0.40, length=0.9, chromatin=1.78, gaps=0.48,
        clumps=0.10, clump_size=4.0, nucleoli=0.4, basophilia=0.32, mottle=0.2, skirting=1.0, eccentricity=0.5,
        pressed=2.6, vacuoles=0.5, azurophil=0.06, lumps=1.0,
    ),
}  # fmt: skip
"""The classes outside granulocyte maturation."""


def between_stages(maturity: float) -> Morphology:
    """Interpolates the stages of granulocyte maturation.

    Args:
        maturity: 0 promyelocyte, 1 myelocyte, 2 metamyelocyte, 3 band, 4 segmented; clipped to this range.

    Returns:
        The measures at that maturity.
    """
    stages = np.array([astuple(stage) for stage in MATURATION.values()])
    values = [np.interp(maturity, np.arange(len(stages)), column) for column in stages.T]
    return Morphology(*map(float, values))


def sample_morphology(label: str, rng: np.random.Generator) -> Morphology:
    """Draws one cell of a class.

    Args:
        label: a key of ``CLASS_NAMES``.
        rng: source of the variation.

    Returns:
        The measures of one cell; ``lobes`` is a whole number.
    """
    if label in MATURATION:
        base = between_stages(list(MATURATION).index(label) + rng.normal(0, MATURATION_SPREAD))
    else:
        base = CELLS[label]
    spread = np.clip(rng.normal(0, 1, 8), -2.2, 2.2).tolist()  # plain floats keep float32 maps float32
    return replace(
        base,
        diameter=base.diameter * (1 + 0.075 * spread[0]),
        elongation=1 + (base.elongation - 1) * abs(1 + spread[1]),
        nucleus_area=min(base.nucleus_area * (1 + 0.09 * spread[2]), 0.86),
        length=base.length * (1 + 0.13 * spread[3]),
        bend=base.bend * (1 + 0.18 * spread[4]),
        lobes=float(np.floor(base.lobes + rng.random())),
        eccentricity=float(np.clip(base.eccentricity + 0.15 * spread[5], 0, 1)),
        chromatin=base.chromatin * (1 + 0.05 * spread[6]),
        basophilia=base.basophilia * (1 + 0.15 * spread[7]),
        nucleoli=float(rng.poisson(base.nucleoli)) if base.nucleoli < 1 else float(round(base.nucleoli + spread[1])),
        vacuoles=float(rng.poisson(base.vacuoles)),
        pressed=float(rng.poisson(base.pressed)),
    )
