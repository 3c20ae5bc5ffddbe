"""Lists labels that the out-of-fold networks of one or several runs doubt, and draws them for a haematologist.

    python scripts/label_issues.py --run wbcbench/convnextv2_tiny
    python scripts/label_issues.py --run paper001/swinv2_tiny --run paper001/convnextv2_tiny --without-embeddings

Training follows the list, edited or not, with --set data.drop_issues=FILE or --set data.relabel_issues=FILE.

Behaviours: reads oof/<run>/fold*/ and the input; creates in oof/<run>/labels/, or oof/<name of the blend>/labels/ for
several runs, label_issues.csv (the most doubtful first), all_images.csv, sources.csv, outliers.csv,
label_issues_confusion.png and sheets/; keeps the embeddings in oof/<run>/fold*/embeddings.npz.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME", help="a run; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the results (default: oof/<run>/labels)")
    parser.add_argument(
        "--without-embeddings", action="store_true", help="no outliers and near duplicates; no network computes"
    )
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.blending.loading import joint_name, select_together
    from leukofold.runs import RUNS

    runs = select_together(arguments.run)

    from leukofold.labels.analysis import analyse_labels
    from leukofold.labels.folder import write_analysis
    from leukofold.labels.summary import analysis_summary

    analysis = analyse_labels(runs, not arguments.without_embeddings)
    files = write_analysis(analysis, arguments.out or RUNS / joint_name(runs) / "labels")
    print(analysis_summary(analysis, files))


if __name__ == "__main__":
    main()
