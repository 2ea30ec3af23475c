"""Make the README's pictures: the ranking from cards and logits, heatmaps from main.ipynb."""

import base64
from pathlib import Path

import nbformat
from matplotlib import pyplot as plt

import mri

found = mri.compare(folder="models/zoo")
# Narrow, so that it can be read on a phone.
with plt.rc_context(mri.plots.STYLE):
    axes = plt.figure(figsize=(4.6, 8.4)).subplots()
mri.plots.leaderboard(found, ax=axes)
axes.figure.suptitle("The same networks on known and on unknown people", fontsize=10)
axes.set_xlabel(axes.get_xlabel(), x=0.25)
axes.axvline(1 / 3, color="black", linestyle=":", linewidth=1)
axes.text(1 / 3, -0.3, " chance", fontsize=8, va="center")
axes.figure.savefig("models/two_splits.png", dpi=160)
plt.close("all")

for cell in nbformat.read("main.ipynb", as_version=4).cells:
    if "pick_examples" in cell.source:
        pictures = [
            of.data["image/png"] for of in cell.outputs if "image/png" in of.get("data", {})
        ]
        for picture in pictures[:1]:
            Path("models/gradcam.png").write_bytes(base64.b64decode(picture))
