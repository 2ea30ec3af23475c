"""Fetch the public parquet files, or say exactly which files to put where."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mri.decode import DataError
from mri.files import alone, file_sha256

HUB_REPOSITORY = "Falah/Alzheimer_MRI"
HUB_REVISION = "daac24f"
HUB_FILES = (
    "train-00000-of-00001-c08a401c53fe5312.parquet",
    "test-00000-of-00001-44110b9df98c5585.parquet",
)
REMEDY = (
    f"Put {HUB_FILES[0]} and {HUB_FILES[1]} from https://huggingface.co/datasets/{HUB_REPOSITORY} "
    "(folder data) into data/ or the folder named by MRI_DATA, "
    "or run: python -m mri.data download"
)


def download(folder: str | os.PathLike[str] = "data") -> list[Path]:
    """Fetch the public train and test files at the pinned revision.

    A file that is there already with the right SHA-256 is not fetched again; one that differs is
    replaced once its successor is verified.

    Parameters
    ----------
    folder : path
        Where to put them.

    Returns
    -------
    list of Path
        The files, each with the SHA-256 that the hub records for that revision.

    Raises
    ------
    DataError
        If the hub cannot be reached, or a file does not have the recorded SHA-256.
    """
    try:
        return _download(Path(folder))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"download failed ({type(error).__name__}: {error}). {REMEDY}") from error


def _download(folder: Path) -> list[Path]:
    import huggingface_hub

    hub, repository = huggingface_hub.HfApi(), {"repo_id": HUB_REPOSITORY, "repo_type": "dataset"}
    # The hub takes full commit hashes only, so the short one is looked up in the history.
    commits = [commit.commit_id for commit in hub.list_repo_commits(**repository)]
    commit = next((commit for commit in commits if commit.startswith(HUB_REVISION)), None)
    if commit is None:
        raise LookupError(f"revision {HUB_REVISION} is not in the history of {HUB_REPOSITORY}")
    tree = hub.list_repo_tree(recursive=True, revision=commit, **repository)
    entries = {Path(entry.path).name: entry for entry in tree}
    paths, part = [folder / name for name in HUB_FILES], folder / ".download"
    with alone(folder / "download"):
        shutil.rmtree(part, ignore_errors=True)  # Of a killed process.
        try:
            for path in paths:
                entry = entries[path.name]
                if path.exists() and file_sha256(path) == entry.lfs.sha256:
                    continue
                # The hub keeps them in a folder of its own; here they stand at the top of `folder`.
                options = {"local_dir": part, "revision": commit, **repository}
                fetched = Path(hub.hf_hub_download(filename=entry.path, **options))
                found = file_sha256(fetched)
                if found != entry.lfs.sha256:
                    raise DataError(
                        f"{path}: SHA-256 {found}, but the hub records {entry.lfs.sha256}; the "
                        "download was removed, run it again"
                    )
                fetched.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m mri.data download [--folder data]``."""
    parser = argparse.ArgumentParser(prog="python -m mri.data", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True)
    command.add_parser("download").add_argument("--folder", default="data")
    try:
        for path in download(parser.parse_args(arguments).folder):
            print(f"{path}: SHA-256 verified")
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
