"""Lineages of blood cells, by the abbreviations that WBCBench and Acevedo-20 share.

Srivastava et al. 2026, Fig. 4: within a lineage cells mature from one class into the next, so that neighbours are
confused most; eosinophils and basophils are granulocytes too, but no stages of this series, and blasts belong to any.
"""

from collections.abc import Mapping

LINEAGES: Mapping[str, tuple[str, ...]] = {
    "granulopoiesis": ("PMY", "MY", "MMY", "BNE", "SNE"),
    "lymphopoiesis": ("PLY", "LY", "VLY", "PC"),
    "monocytopoiesis": ("MO",),
}
"""Lineage -> its classes in order of maturation."""
