"""Draws a data set's folder of rendered cells, or pictures of them, or degrades a folder of images.

    python scripts/render_cells.py --competition wbcbench --out input/rendered/wbcbench
    python scripts/render_cells.py --competition acevedo --images 400 --out input/rendered/acevedo
    python scripts/render_cells.py --degrade input/external/acevedo --out input/degraded/acevedo
    python scripts/render_cells.py --contact-sheet docs/cells.png --severities docs/severities.png
    python scripts/render_cells.py --laboratories docs/laboratories.jpg
    python scripts/render_cells.py --modalities docs/multimodal.jpg

Behaviours: creates --out in one step. With --competition it gets the data set's files, rendered.json and
rendered_truth.csv; an earlier rendered folder there is replaced, anything else refused. With --degrade it gets
a copy of the folder's files, the images degraded as in WBCBench's phase 2, and degraded.csv; --out must be new.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard
from leukofold.errors import UserError
from leukofold.rendering import LABELLED, LAYOUT_NAMES, RenderSpec, render


def parse_arguments() -> argparse.Namespace:
    """Reads the command line; every field of ``RenderSpec`` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--competition", choices=LAYOUT_NAMES, help="whose file layout to write")
    parser.add_argument("--degrade", type=Path, metavar="FROM", help="folder of images to copy and degrade")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to create")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw all classes into one picture")
    parser.add_argument("--severities", type=Path, metavar="FILE", help="draw cells at severities 0 to 4")
    parser.add_argument("--laboratories", type=Path, metavar="FILE", help="draw RaabinWBC's and LISC's five classes")
    parser.add_argument("--modalities", type=Path, metavar="FILE", help="draw multimodal cells in each modality")
    for name, field in RenderSpec.model_fields.items():
        kind = float if field.annotation is float else int
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=field.default,
            metavar=kind.__name__.upper(),
            help=f"{field.description} (default: {field.default})",
        )
    return parser.parse_args()


@main_guard
def main() -> None:
    """Renders what the command line asks for."""
    arguments = parse_arguments()
    makers = [option for option in (arguments.competition, arguments.degrade) if option is not None]
    if len(makers) != (arguments.out is not None):
        raise UserError("--out belongs together with --competition or with --degrade: give it and one of them")
    pictures = (arguments.contact_sheet, arguments.severities, arguments.laboratories, arguments.modalities)
    if not (makers or any(pictures)):
        raise UserError(
            "nothing to draw: give --competition or --degrade and --out, --contact-sheet, --severities, "
            "--laboratories or --modalities"
        )
    if arguments.competition:
        spec = _spec(arguments)
        render(arguments.competition, arguments.out, spec, workers=arguments.workers)
        drawn = spec.images + (0 if arguments.competition in LABELLED else spec.test_images)
        what = "cells" if arguments.competition == "multimodal" else "images"
        print(f"rendered {drawn} {what} in {arguments.competition}'s layout: {arguments.out}")
    if arguments.degrade:
        from leukofold.rendering.degradation import degrade_folder  # late: loads OpenCV

        severities = degrade_folder(arguments.degrade, arguments.out, _spec(arguments).seed)
        print(f"degraded {len(severities)} images of {arguments.degrade}: {arguments.out}")
    if any(pictures):
        from leukofold.rendering import contact_sheet  # late: loads OpenCV

        if arguments.contact_sheet:
            contact_sheet.save_picture(arguments.contact_sheet, contact_sheet.contact_sheet(arguments.seed))
        if arguments.severities:
            contact_sheet.save_picture(arguments.severities, contact_sheet.severity_strip(arguments.seed))
        if arguments.laboratories:
            contact_sheet.save_picture(arguments.laboratories, contact_sheet.laboratory_sheet(arguments.seed))
        if arguments.modalities:
            contact_sheet.save_picture(arguments.modalities, contact_sheet.modality_sheet(arguments.seed))


def _spec(arguments: argparse.Namespace) -> RenderSpec:
    """Builds the spec; a value out of bounds names its option."""
    from pydantic import ValidationError

    try:
        return RenderSpec(**{name: getattr(arguments, name) for name in RenderSpec.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{option} {first['input']}: {first['msg']}") from None


if __name__ == "__main__":
    main()
