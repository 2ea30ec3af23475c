"""Refuse notebooks of more than 2 MB: `make outputs` commits their pictures in 256 colours."""

import sys
from pathlib import Path

LIMIT = 2 * 2**20

large = [path for path in map(Path, sys.argv[1:]) if path.stat().st_size > LIMIT]
for path in large:
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MB, the limit is 2 MB; run: make outputs")
sys.exit(bool(large))
