"""Download the public parquet files, or say exactly which files to put where."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mri._files import alone, file_sha256
from mri.data.decode import DataError
from mri.data.parquet import HUB_FILES, HUB_REPOSITORY, HUB_REVISION, REMEDY


def download_slices(folder: str | os.PathLike[str] = "data") -> list[Path]:
    """Download the public train and test files at the pinned revision.

    A file with the right SHA-256 is not downloaded again. A file that differs is replaced after the
    new file is verified. An interrupted download resumes.

    Parameters
    ----------
    folder : path
        Where to put the files.

    Returns
    -------
    list of Path
        The files. Each has the SHA-256 that the hub records for that revision.

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
    tree = hub.list_repo_tree(recursive=True, revision=HUB_REVISION, **repository)
    entries = {Path(entry.path).name: entry for entry in tree}
    paths, part = [folder / name for name in HUB_FILES], folder / ".download"
    with alone(folder / "download"):
        for path in paths:
            entry = entries[path.name]
            if path.exists() and file_sha256(path) == entry.lfs.sha256:
                continue
            # The client resumes partial files in its folder, so a failure keeps the folder.
            options = {"local_dir": part, "revision": HUB_REVISION, **repository}
            fetched = Path(hub.hf_hub_download(filename=entry.path, **options))
            found = file_sha256(fetched)
            if found != entry.lfs.sha256:
                shutil.rmtree(part, ignore_errors=True)
                raise DataError(
                    f"{path}: SHA-256 {found}, but the hub records {entry.lfs.sha256}; the "
                    "download was removed, run it again"
                )
            fetched.replace(path)
        shutil.rmtree(part, ignore_errors=True)
    return paths
