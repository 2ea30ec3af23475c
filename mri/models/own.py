"""Which model files need no trial: the project's own, and those of this process."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mri._files import read_regular
from mri.models.cards import ModelFileError

if TYPE_CHECKING:
    from mri.models.files import ModelFile

_OWN = Path(__file__).with_name("own.json")


def is_own(file: ModelFile) -> bool:
    """Whether card and kept logits are, byte for byte, those that come with this version.

    The card holds the SHA-256 of the model file, and `ModelFile.inspect` compares the two.
    """
    try:
        return file.card is not None and _digest(file.path) in _own()
    except (OSError, ModelFileError):
        return False


@cache
def _own() -> frozenset[str]:
    return frozenset(json.loads(_OWN.read_text(encoding="utf-8")) if _OWN.is_file() else [])


def _digest(path: Path) -> str:
    parts = (read_regular(path.with_suffix(ending), 2**30) for ending in (".json", ".parquet"))
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def write_own(folder: Path) -> None:
    """Note the cards and kept logits of `folder` as this version's own, after they were made."""
    kept = (path for path in folder.glob("[!.]*.json") if path.with_suffix(".parquet").exists())
    _OWN.write_text(json.dumps(sorted(map(_digest, kept)), indent=0) + "\n", encoding="utf-8")
