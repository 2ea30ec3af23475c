"""Refuse files of 2 MB and more, the size above which a code host no longer shows a notebook."""

import sys
from pathlib import Path

LIMIT = 2 * 2**20
large = [path for path in sys.argv[1:] if Path(path).stat().st_size >= LIMIT]
for path in large:
    size = Path(path).stat().st_size / 2**20
    print(f"{path}: {size:.1f} MB, expected less than 2; make outputs reduces the pictures")
sys.exit(bool(large))
