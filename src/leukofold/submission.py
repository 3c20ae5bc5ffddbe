"""Leaderboard files: written, checked against the competition's own list, explained, uploaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

from leukofold import kaggle
from leukofold.blending.combining import Blend, competition_scores
from leukofold.blending.judging import Judgement
from leukofold.blending.loading import joint_name
from leukofold.competitions import Competition, get_competition, names
from leukofold.deciding import Decision, by_highest_logit
from leukofold.errors import UserError
from leukofold.files import replacing, write_json
from leukofold.provenance import git_commit, library_versions

SUBMISSIONS = Path("submissions")


def write_submission(
    blend: Blend, name: str | None = None, root: Path = SUBMISSIONS, decision: Decision | None = None
) -> Path:
    """Writes a blend's submission and, beside it, the JSON that says where every number came from.

    Nothing is written unless the file passes the competition's check.

    Args:
        blend: The runs.
        name: The file's name without suffix; None: the run's name, or one made of several runs' names, and the method
            where it is not the plain mean.
        root: Where submissions lie.
        decision: The test images' classes; None: by the highest logit.

    Returns:
        The submission.

    Raises:
        UserError: The file does not pass the check, such as when the input lost test images.
    """
    competition = get_competition(blend.metadata["competition"])
    decision = decision or by_highest_logit(blend)
    stem = name or _default_name(blend) + ("-prior" if decision.prior is not None else "")
    path = root / competition.name / f"{stem}{competition.submission_suffix}"
    labels = decision.labels
    with replacing(path) as temporary:
        competition.write_submission(temporary, blend.test.image_id.tolist(), labels)
        faults = competition.check_submission(temporary, Path(blend.metadata["input"]))
        if faults:
            raise UserError(f"{path}: not written, it would be refused: {'; '.join(faults)}")
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        counts = {class_name: int((labels == k).sum()) for k, class_name in enumerate(competition.class_names)}
        write_json(
            sidecar(path),
            {
                "submission": path.name,
                "sha256": digest,
                "predicted": counts,
                "decision": decision.as_json(),
                **_origin(blend),
            },
        )
    return path


def _default_name(blend: Blend) -> str:
    """Names a submission after its runs and method, so that another method's does not take its place."""
    method = f"-{blend.choice.method.replace('+', '-')}" if blend.choice.taken else ""
    return joint_name(blend.runs).replace("/", "-") + method


def sidecar(path: Path) -> Path:
    """Returns the JSON that belongs to a submission."""
    return path.with_suffix(".json")


def find_input(path: Path, competition_name: str | None, root: Path | None) -> tuple[Competition, Path]:
    """Finds out which competition and which input folder a submission belongs to.

    Args:
        path: The submission.
        competition_name: Given by the user, or None: the JSON beside the file tells, or its folder.
        root: Input folder given by the user, or None: the JSON beside the file tells, or the default.

    Returns:
        The competition and the folder.

    Raises:
        UserError: The file is not there, or its competition cannot be told.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    origin = read_origin(path)
    known = competition_name or origin.get("competition") or path.resolve().parent.name
    if competition_name is None and known not in names():
        raise UserError(f"{path}: cannot tell its competition; name it with --competition {'|'.join(names())}")
    return get_competition(known), root or Path(origin.get("input") or f"input/{known}")


def read_origin(path: Path) -> dict[str, Any]:
    """Reads the JSON beside a submission; empty if there is none."""
    if not sidecar(path).exists():
        return {}
    try:
        origin = json.loads(sidecar(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{sidecar(path)}: not valid JSON ({error}); write the submission again") from None
    return origin if isinstance(origin, dict) else {}


def check(path: Path, competition: Competition, root: Path) -> None:
    """Refuses a submission that the competition would refuse.

    Raises:
        UserError: Names every fault.
    """
    faults = competition.check_submission(path, root)
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")


def upload(path: Path, competition: Competition, message: str) -> str:
    """Uploads a checked submission, or tells how to.

    Args:
        path: The submission.
        competition: Where it goes.
        message: The uploader's note.

    Returns:
        What happened, or the steps by hand.

    Raises:
        UserError: The submission is of rendered images, or the client is missing or fails.
    """
    if read_origin(path).get("rendered"):
        raise UserError(
            f"{path}: predicts rendered images, which no leaderboard knows; train on the competition's files"
        )
    arguments, by_hand = competition.upload_steps(path, message)
    if not arguments:
        return by_hand
    return kaggle.run(arguments, by_hand)


def _origin(blend: Blend) -> dict[str, Any]:
    """Tells all that a submission's numbers depend on."""
    metadata = blend.metadata
    return {
        "competition": metadata["competition"],
        "rendered": metadata["rendered"],
        "split_by": metadata["split_by"],
        "method": _method(blend),
        "metric": metadata["metric"],
        "oof": {
            "images": int((~blend.oof.is_external).sum()),
            "folds": sorted(set(blend.folds.tolist())),
            "missing_folds": blend.runs[0].missing_folds,
            **blend.scores(),
        },
        "holdout": blend.holdout_scores(),
        "runs": [
            {
                "name": run.name,
                "config_digest": run.metadata["config_digest"],
                "label_lists": run.metadata.get("label_lists"),
                "folds": run.provenance,
                "config": run.metadata["config"],
                "oof": competition_scores(run.oof),
                "oof_per_fold": {
                    int(k): competition_scores(run.oof, run.folds == k)[metadata["metric"]]
                    for k in sorted(set(run.folds))
                },
            }
            for run in blend.runs
        ],
        "input": metadata["input"],
        "data_fingerprint": metadata["data_fingerprint"],
        "class_names": metadata["class_names"],
        "commit": git_commit(),
        "versions": library_versions(),
    }


def _method(blend: Blend) -> dict[str, Any]:
    """Tells how the runs were combined, and what each method that was tried gained under nested folds."""
    run_names = [run.name for run in blend.runs]
    return {
        "asked": blend.choice.asked,
        "taken": blend.choice.method,
        "reason": blend.choice.reason,
        "judged": {
            one.method: {**_judged(one), "fitted": one.combiner.describe(run_names, blend.oof.class_names)}
            for one in blend.choice.judged
        },
        "trial": _judged(blend.choice.trial) if blend.choice.trial else None,
    }


def _judged(one: Judgement) -> dict[str, Any]:
    """Tells a nested score and its gain; without an interval where it has none."""
    ends = {"low": one.gain.low, "high": one.gain.high} if one.gain.known else {"low": None, "high": None}
    return {"nested": one.value, "gain": {"value": one.gain.value, **ends}, "groups": one.groups}
