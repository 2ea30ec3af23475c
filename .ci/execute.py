"""Execute notebooks from top to bottom into runs/, and say what was done.

Pictures are reduced to 256 colours, which halves the files or better.
"""

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm import tqdm


def small(data: str) -> str:
    """Return a PNG picture in base64 with 256 colours, or as it was where that is smaller."""
    raw, found = base64.b64decode(data), io.BytesIO()
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(found, "png", optimize=True)
    return data if found.tell() >= len(raw) else base64.b64encode(found.getvalue()).decode() + "\n"


def tidy(book: nbformat.NotebookNode) -> None:
    """Take out what a bar of progress leaves behind, and shrink the pictures."""
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        outputs = cell.get("outputs", [])
        cell.outputs = [of for of in outputs if of.output_type != "stream" or of.text.strip()]
        if cell.cell_type != "code":
            del cell["outputs"]
        for output in outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    # The explorer's picture, once more inside the state of its widgets.
    state = book.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    for widget in state.get("state", {}).values():
        for buffer in widget.get("buffers", []):
            buffer["data"] = small(buffer["data"]).strip()


models, done = Path("models"), []
Path("runs").mkdir(exist_ok=True)
before = {path: path.stat().st_mtime for path in models.glob("*.keras")}
for name in sys.argv[1:]:
    book, start = nbformat.read(name, as_version=4), time.monotonic()
    with tqdm(total=len(book.cells), desc=name, unit="cell", leave=False) as bar:
        client = NotebookClient(book, timeout=None, kernel_name="python3", coalesce_streams=True)
        client.on_cell_start = lambda bar=bar, **_: bar.update()
        try:
            client.execute()
        finally:  # What was done before an error is kept too.
            tidy(book)
            nbformat.write(book, Path("runs") / name)
    done.append(f"{name}: {len(book.cells)} cells, {time.monotonic() - start:.0f} s")
print(*done, sep="\n")
for path in sorted(models.glob("*.keras")):
    new = path not in before or path.stat().st_mtime > before[path]
    print(f"{path}: {'trained now' if new else 'was there before'}")
