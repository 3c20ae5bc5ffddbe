"""Draws every augmentation of a configuration on rendered cells.

    python scripts/show_augmentations.py --config configs/wbcbench/paper001/base.yaml --out docs/augmentations.jpg

Behaviours: creates --out, a picture with one row per augmentation.
"""

import argparse
from pathlib import Path

from leukofold.cli import DEFAULT_CONFIG, add_config_arguments, main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("augmentations.jpg"), metavar="FILE", help=".png or .jpg")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.config import load_config
    from leukofold.gallery import augmentation_sheet
    from leukofold.rendering.contact_sheet import save_picture

    config = load_config(arguments.config or [DEFAULT_CONFIG], arguments.overrides)
    save_picture(arguments.out, augmentation_sheet(config))
    print(f"{len(config.image.augment)} augmentations: {arguments.out}")


if __name__ == "__main__":
    main()
