"""Rendered cells: Romanowsky-stained leukocytes drawn from morphology, in the real file layouts of data sets.

They let everything run and be tested without the competitions' images, which cannot be redistributed, and with
a known truth for every image. They are drawings: a score on them says that the pipeline works, nothing more.
"""

import json
from pathlib import Path
from typing import Any

from leukofold.errors import UserError
from leukofold.rendering.spec import RenderSpec

__all__ = [
    "EXTERNAL", "LABELLED", "LAYOUT_NAMES", "RENDERER_VERSION", "RenderSpec", "is_current", "render", "rendered_info",
]  # fmt: skip

EXTERNAL = ("acevedo", "blood8", "cellwiki")
"""Layouts of external data sets: they have no patients and no test images."""

LABELLED = ("raabin", "multimodal", *EXTERNAL)
"""Layouts all of whose images are labelled: a spec's ``test_images`` has no meaning for them."""

LAYOUT_NAMES = ("wbcbench", "cnmc", *LABELLED)

RENDERER_VERSION = 1
"""Raised whenever the same spec gives other bytes, so that folders of an older renderer count as outdated."""


def render(competition: str, root: Path, spec: RenderSpec, workers: int | None = None, progress: bool = True) -> None:
    """Draws the folder of a competition or an external data set.

    Everything is drawn beside ``root`` and renamed into place at the end, so ``root`` is never half-written.
    Besides the data set's files it holds ``rendered.json`` (what was rendered) and ``rendered_truth.csv``:
    one row per image file with ``path`` (relative to root), ``image_id``, ``split``, ``patient`` (under whose
    name the file lies), ``true_label``, ``given_label`` (empty for test images), ``severity``, ``planted``
    (empty, ``wrong_label``, ``exact_duplicate``, ``near_duplicate`` or ``corrupt``) and ``duplicate_of``.

    Args:
        competition: one of ``LAYOUT_NAMES``.
        root: folder to create; a folder rendered earlier is replaced.
        spec: size, seed and planted faults.
        workers: number of processes; None chooses. The bytes do not depend on it.
        progress: show a progress bar.

    Raises:
        UserError: unknown competition, ``root`` holds something else, or the spec does not fit the layout.
    """
    if competition not in LAYOUT_NAMES:
        raise UserError(f"'{competition}' cannot be rendered; known layouts are {', '.join(LAYOUT_NAMES)}")
    root = Path(root).resolve()  # behind a link, the folder is replaced and not the link
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; name a folder to render into")
    if root.is_dir() and any(root.iterdir()) and rendered_info(root) is None:
        raise UserError(f"{root}: holds files that were not rendered; name another folder or empty this one")
    from leukofold.rendering.folder import render_folder  # late: loads OpenCV and pandas

    render_folder(competition, root, spec, _stamp(competition, spec), workers, progress)


def is_current(root: Path, competition: str, spec: RenderSpec) -> bool:
    """Whether ``root`` holds exactly what ``render`` would draw now, judged by its ``rendered.json``."""
    return rendered_info(root) == _stamp(competition, spec)


def rendered_info(root: Path) -> dict[str, Any] | None:
    """Reads a folder's ``rendered.json``.

    Args:
        root: any folder, existing or not.

    Returns:
        Its content (``rendered``, ``competition``, ``renderer_version``, ``spec``), or None where the folder was
        not rendered.
    """
    try:
        info = json.loads((Path(root) / "rendered.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) and info.get("rendered") is True else None


def _stamp(competition: str, spec: RenderSpec) -> dict[str, Any]:
    """What ``rendered.json`` says of a folder."""
    return {
        "rendered": True,
        "competition": competition,
        "renderer_version": RENDERER_VERSION,
        "spec": spec.model_dump(mode="json"),
    }
