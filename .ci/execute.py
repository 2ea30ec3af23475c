"""Execute notebooks from top to bottom into runs/, and show how far they are."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

for name in sys.argv[1:]:
    book = nbformat.read(name, as_version=4)
    with tqdm(total=len(book.cells), desc=name, unit="cell") as bar:
        client = NotebookClient(book, timeout=None, kernel_name="python3")
        client.on_cell_start = lambda bar=bar, **_: bar.update()
        client.execute()
    nbformat.write(book, Path("runs") / name)
