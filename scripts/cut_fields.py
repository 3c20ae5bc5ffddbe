"""Cuts single cells out of LISC's fields along the expert's masks, a folder per class.

    python scripts/cut_fields.py "input/lisc/LISC Database" --out input/raabin/LISCCropped
    python scripts/cut_fields.py "input/lisc/LISC Database" --out wide --margin 0.5

Each cell becomes a square around its bounding box, at the field's own resolution; beyond the field's border it is
mirrored. Fields without a mask are left out and named, and those of several classes (mixt) are left out.

Behaviours: reads the folder; creates --out, which must be new, in one step: <Class>/<field>_<k>.png, and cells.csv, a
row per cell: its field, its mask and its bounding box. As input/raabin/LISCCropped it is RaabinWBC's split LISC.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard
from leukofold.errors import UserError, name_some


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fields", type=Path, metavar="DIR", help="LISC as unpacked: fields and masks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.15,
        metavar="SHARE",
        help="free space on each side of a cell, as a share of its longer side (default: 0.15)",
    )
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    if not 0 <= arguments.margin <= 5:
        raise UserError(f"--margin {arguments.margin}: give a share from 0 to 5")

    from leukofold.images.fields import cut_fields

    report = cut_fields(arguments.fields, arguments.out, arguments.margin)
    counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
    print(f"{arguments.out}: {sum(report.counts.values())} cells of {report.fields} fields ({counts})")
    for fields, reason in ((report.without_mask, "without a mask"), (report.without_cell, "whose mask shows no cell")):
        if fields:
            print(f"left out {len(fields)} fields {reason}: {name_some(fields)}")
    if report.mixed:
        print(f"left out {report.mixed} fields of several classes (mixt)")


if __name__ == "__main__":
    main()
