"""Finds images that stand in the training or test data more than once, by what they look like.

    python scripts/check_duplicates.py --config configs/wbcbench/convnextv2_tiny.yaml
    python scripts/check_duplicates.py --config configs/demo.yaml --out found.csv

Compares all images of a configuration, the external data sets' among them, with each other. Training keeps equal
images in one fold by itself; this tells which ones they are, and which of them are labelled differently.

Behaviours: reads the input; creates duplicates-<competition>.csv in the working folder (a row per pair: the images,
their labels, sources, splits and groups), or the file named with --out; renders what the configuration wants rendered;
remembers in cache/ what was compared.
"""

import argparse
from pathlib import Path

from leukofold.cli import DEFAULT_CONFIG, add_config_arguments, main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table (default: duplicates-<competition>.csv)")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.config import load_config

    config = load_config(arguments.config or [DEFAULT_CONFIG], arguments.overrides)

    from leukofold.cells import image_files
    from leukofold.duplicates import describe, duplicate_report, find_duplicates
    from leukofold.experiment import read_cells
    from leukofold.files import write_text
    from leukofold.images.reading import survey_images

    table = read_cells(config)
    hashes = survey_images(image_files(table.frame), config.data.cache)
    pairs = find_duplicates(table.frame, hashes, config.data.cache)
    report = duplicate_report(table.frame, table.class_names, pairs)
    out = arguments.out or Path(f"duplicates-{config.data.competition}.csv")
    write_text(out, report.to_csv(index=False, lineterminator="\n"))
    print(f"{config.data.competition}: {out}")
    print(describe(report, len(table.frame)))


if __name__ == "__main__":
    main()
