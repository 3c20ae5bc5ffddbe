"""Where a result came from: commit, library versions, data."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

LIBRARIES = (
    "torch",
    "timm",
    "albumentations",
    "accelerate",
    "scikit-learn",
    "pandas",
    "numpy",
    "opencv-python-headless",
)


def library_versions() -> dict[str, str]:
    """Returns the version of Python and of each library that can change a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def git_commit() -> str:
    """Returns the commit of the source tree, with ``+changes`` where files differ from it; else ``unknown``."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if commit and git("status", "--porcelain") else commit or "unknown"
    except FileNotFoundError:  # no git on this machine
        return "unknown"
