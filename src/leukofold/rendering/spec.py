"""What to render: the settings of a rendered folder.

Imports nothing heavier than pydantic, so that configurations can nest a ``RenderSpec`` at no cost.
"""

from pydantic import BaseModel, ConfigDict, Field


class RenderSpec(BaseModel):
    """Size, seed and planted faults of a rendered folder.

    The same spec gives byte-identical files, whatever the number of worker processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(
        900, ge=1, le=200_000, description="labelled images over all splits; multimodal counts cells, of four images"
    )
    test_images: int = Field(
        240,
        ge=1,
        le=200_000,
        description="unlabelled images (WBCBench phase2_test; C-NMC final phase); the other data sets have none",
    )
    patients: int = Field(
        40,
        ge=1,
        le=10_000,
        description="patients over all labelled splits (WBCBench, multimodal), training subjects (C-NMC), or smears of "
        "Train and TestA (RaabinWBC); external data sets have none",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    wrong_labels: float = Field(0.0, ge=0.0, le=1.0, description="rate of labelled images whose written label is wrong")
    exact_duplicates: int = Field(0, ge=0, description="byte-identical copies planted across splits or subjects")
    near_duplicates: int = Field(0, ge=0, description="re-encoded, shifted copies planted across splits or subjects")
    corrupt_files: int = Field(0, ge=0, description="labelled images truncated, emptied or overwritten with text")
