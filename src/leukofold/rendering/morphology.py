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
        openness: how much of the nucleus the gaps take: -0.3 few and isolated, 0.4 a lacy network.
        weave: distance in pixels from one strand to the next; 4.5 fine, 9 coarse.
        folds: expected number of clefts in the nucleus.
        variety: relative standard deviation of the nucleus' length.
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
        pseudopods: expected number of processes of the cell.
        pseudopod_reach: their mean length over the cell's radius.
        specific: concentration of fine lilac neutrophil granules.
        azurophil: concentration of reddish-purple primary granules.
        azurophil_count: share of the possible places that hold one, 0 to 0.9.
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
    openness: float = 0.0
    weave: float = 7.0
    folds: float = 0.0
    variety: float = 0.13
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
    pseudopods: float = 0.0
    pseudopod_reach: float = 0.2
    specific: float = 0.0
    azurophil: float = 0.0
    azurophil_count: float = 0.5
    eosinophil: float = 0.0
    basophil: float = 0.0


MATURATION: dict[str, Morphology] = {
    "PMY": Morphology(
        diameter=157, nucleus_area=0.62, length=0.5, eccentricity=0.75, chromatin=1.82, gaps=0.52, openness=0.8,
        weave=6.0, clumps=0.07, nucleoli=1.3, nucleolus_radius=7.5, basophilia=0.56, acidophilia=0.06, mottle=0.2,
        skirting=0.35, hof=0.75, azurophil=2.2, azurophil_count=0.75, specific=0.02, irregularity=0.028,
    ),
    "MY": Morphology(
        diameter=143, nucleus_area=0.49, length=0.7, eccentricity=0.85, chromatin=1.86, gaps=0.53, openness=0.72,
        weave=6.5, clumps=0.09, basophilia=0.27, acidophilia=0.13, mottle=0.2, skirting=0.7, hof=0.45, azurophil=1.7,
        azurophil_count=0.36, specific=0.22, nucleoli=0.1, irregularity=0.026,
    ),
    "MMY": Morphology(
        diameter=140, nucleus_area=0.45, length=2.9, bend=2.9, eccentricity=0.75, chromatin=1.9, gaps=0.54,
        openness=0.58, weave=7, clumps=0.10, basophilia=0.11, acidophilia=0.19, mottle=0.2, skirting=0.4,
        azurophil=1.1, azurophil_count=0.2, specific=0.28, lobes=2, constriction=0.12, vacuoles=0.3,
    ),
    "BNE": Morphology(
        diameter=138, nucleus_area=0.38, length=5.8, bend=3.4, eccentricity=0.45, chromatin=1.95, gaps=0.54,
        openness=0.44, weave=7.5, clumps=0.11, basophilia=0.03, acidophilia=0.23, mottle=0.18, azurophil=0.7,
        azurophil_count=0.08, specific=0.27, lobes=3, constriction=0.06, vacuoles=0.4, lumps=0.9,
    ),
    "SNE": Morphology(
        diameter=138, nucleus_area=0.38, length=6.7, bend=4.1, eccentricity=0.4, chromatin=1.96, gaps=0.58,
        openness=0.4, weave=7.5, clumps=0.11, basophilia=0.02, acidophilia=0.24, mottle=0.18, azurophil=0.7,
        azurophil_count=0.06, specific=0.27, lobes=3.3, constriction=0.92, vacuoles=0.4,
    ),
}  # fmt: skip
"""Stages of granulocyte maturation, youngest first."""

_STAGES = np.array([astuple(stage) for stage in MATURATION.values()])

MATURATION_SPREAD = 0.33
"""Standard deviation, in stages, of a cell's maturity around its class: about 6 % look like each neighbour."""

CELLS: dict[str, Morphology] = {
    "BA": Morphology(
        diameter=126, nucleus_area=0.46, length=3.4, bend=2.8, lobes=2.5, constriction=0.55, chromatin=1.2, fray=0.12,
        gaps=0.5, openness=0.6, clumps=0.12, basophilia=0.10, acidophilia=0.3, basophil=2.2, eccentricity=0.3,
        irregularity=0.03, mottle=0.2,
    ),
    "BL": Morphology(
        diameter=150, nucleus_area=0.77, length=0.5, chromatin=1.6, gaps=0.33, openness=0.8, weave=5.0, clumps=0.05,
        nucleoli=2.4, nucleolus_radius=8, basophilia=0.62, skirting=0.4, mottle=0.16, irregularity=0.028,
        eccentricity=0.7, lumps=0.8, folds=0.3,
    ),
    "EO": Morphology(
        diameter=142, nucleus_area=0.34, length=4.9, bend=3.0, lobes=2.25, constriction=0.88, chromatin=1.92, gaps=0.54,
        openness=0.42, weave=7.5, clumps=0.11, basophilia=0.12, acidophilia=0.06, eosinophil=0.68, eccentricity=0.7,
        fray=0.06, variety=0.2,
    ),
    "LY": Morphology(
        diameter=103, nucleus_area=0.77, length=0.5, chromatin=1.92, gaps=0.4, openness=0.55, weave=7, clumps=0.12,
        clump_size=4.0, basophilia=0.40, acidophilia=0.03, mottle=0.16, irregularity=0.026, eccentricity=0.85,
        fray=0.08, skirting=0.5, folds=0.35, pseudopods=1.5, pseudopod_reach=0.11,
    ),
    "MO": Morphology(
        diameter=164, elongation=1.12, irregularity=0.045, fray=0.14, nucleus_area=0.54, length=2.0, bend=2.6, lobes=2,
        constriction=0.08, lumps=1.5, eccentricity=0.45, chromatin=1.72, gaps=0.5, openness=0.82, weave=6.5,
        clumps=0.05, basophilia=0.27, acidophilia=0.07, mottle=0.15, azurophil=0.45, azurophil_count=0.3, vacuoles=4,
        variety=0.4, folds=1.0, pseudopods=1.1, pseudopod_reach=0.26,
    ),
    "PC": Morphology(
        diameter=142, elongation=1.24, nucleus_area=0.29, length=0.3, eccentricity=0.95, chromatin=1.8, gaps=0.5,
        openness=0.4, weave=8, clumps=0.12, clump_size=5.0, clock_face=0.42, basophilia=0.85, mottle=0.14, hof=0.8,
        vacuoles=0.8, irregularity=0.025, lumps=0.3, skirting=0.25,
    ),
    "PLY": Morphology(
        diameter=128, nucleus_area=0.68, length=0.3, chromatin=1.85, gaps=0.44, openness=0.55, weave=6.5, clumps=0.11,
        clump_size=4.0, nucleoli=1.0, nucleolus_radius=12, basophilia=0.34, eccentricity=0.6, mottle=0.13,
    ),
    "VLY": Morphology(
        diameter=172, elongation=1.14, irregularity=0.05, nucleus_area=0.40, length=0.9, chromatin=1.8, gaps=0.48,
        openness=0.65, weave=6.5, clumps=0.10, clump_size=4.0, nucleoli=0.4, basophilia=0.26, mottle=0.14, skirting=0.8,
        eccentricity=0.5, pressed=2.8, vacuoles=0.5, azurophil=0.5, azurophil_count=0.04, lumps=1.0, folds=0.4,
        variety=0.3,
    ),
}  # fmt: skip
"""The classes outside granulocyte maturation."""

LARGE_LYMPHOCYTE = replace(
    CELLS["LY"], diameter=132, nucleus_area=0.50, basophilia=0.20, azurophil=1.4, azurophil_count=0.06, skirting=0.7,
    irregularity=0.04, chromatin=1.85, openness=0.7, pseudopods=0.4, pseudopod_reach=0.2,
)  # fmt: skip
"""The less common kind of lymphocyte: more and paler cytoplasm with a few granules."""

LARGE_LYMPHOCYTE_SHARE = 0.13


def between_stages(maturity: float) -> Morphology:
    """Interpolates the stages of granulocyte maturation.

    Args:
        maturity: 0 promyelocyte, 1 myelocyte, 2 metamyelocyte, 3 band, 4 segmented; clipped to this range.

    Returns:
        The measures at that maturity.
    """
    values = [np.interp(maturity, np.arange(len(_STAGES)), column) for column in _STAGES.T]
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
        base = LARGE_LYMPHOCYTE if label == "LY" and rng.random() < LARGE_LYMPHOCYTE_SHARE else CELLS[label]
    spread = np.clip(rng.normal(0, 1, 8), -2.2, 2.2).tolist()  # plain floats keep float32 maps float32
    return replace(
        base,
        diameter=base.diameter * (1 + 0.075 * spread[0]),
        elongation=1 + (base.elongation - 1) * abs(1 + spread[1]),
        nucleus_area=min(base.nucleus_area * (1 + 0.09 * spread[2]), 0.86),
        length=base.length * max(1 + base.variety * spread[3], 0.3),
        bend=base.bend * (1 + 0.18 * spread[4]),
        lobes=float(np.floor(base.lobes + rng.random())),
        eccentricity=float(np.clip(base.eccentricity + 0.15 * spread[5], 0, 1)),
        chromatin=base.chromatin * (1 + 0.05 * spread[6]),
        basophilia=base.basophilia * (1 + 0.15 * spread[7]),
        azurophil=base.azurophil * float(np.exp(0.25 * spread[4])),
        nucleoli=_nucleoli(base.nucleoli, spread[1], rng),
        vacuoles=float(rng.poisson(base.vacuoles)),
        pressed=float(rng.poisson(base.pressed)),
        folds=float(rng.poisson(base.folds)),
        pseudopods=float(rng.poisson(base.pseudopods)),
    )


def _nucleoli(expected: float, spread: float, rng: np.random.Generator) -> float:
    """Number of nucleoli: chance where fewer than one is expected, else at least one."""
    if expected < 1:
        return float(rng.poisson(expected))
    return float(max(round(expected + 0.8 * (expected - 1) * spread), 1))
