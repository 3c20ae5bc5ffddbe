"""The Kaggle client, where it is installed and signed in; it is no requirement of this project."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from leukofold.errors import UserError


def signed_in() -> bool:
    """Tells whether credentials lie where the client looks for them."""
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    given = os.environ.get("KAGGLE_CONFIG_DIR")
    folders = [Path(given)] if given else [Path.home() / ".kaggle", config_home / "kaggle"]
    by_key = bool(os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"))
    files = ("kaggle.json", "access_token", "credentials.json")
    return (
        by_key
        or bool(os.environ.get("KAGGLE_API_TOKEN"))
        or any((folder / name).is_file() for folder in folders for name in files)
    )


def need_client(by_hand: str) -> None:
    """Refuses to go on without an installed client that is signed in.

    Raises:
        UserError: It is not.
    """
    if shutil.which("kaggle") is None:
        raise UserError(f"the Kaggle client is not installed (pip install kaggle); by hand: {by_hand}")
    if not signed_in():
        raise UserError(
            "the Kaggle client has no credentials: create a token at https://www.kaggle.com/settings and save it as "
            f"~/.kaggle/kaggle.json; by hand: {by_hand}"
        )


def run(arguments: Sequence[str], by_hand: str) -> str:
    """Runs the client.

    Args:
        arguments: After ``kaggle``.
        by_hand: What to do without it, for the message.

    Returns:
        What the client said.

    Raises:
        UserError: It is not installed, not signed in, or failed.
    """
    need_client(by_hand)
    done = subprocess.run(["kaggle", *arguments], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        last = said.splitlines()[-1] if said else f"exit code {done.returncode}"
        raise UserError(f"kaggle {' '.join(arguments[:2])} failed: {last}; by hand: {by_hand}")
    return said
