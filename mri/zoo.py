"""Train every registered network under both protocols, keep what a ranking needs, print the table.

``REPORTED`` has what the benchmarks' authors say of their networks, for comparison: accuracy on the
image-level test part, in percent.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from mri.comparison import compare
from mri.models import list_models
from mri.predictions import find_logits, keep_logits
from mri.training import RECIPES, Recipe, is_trained, protocols, recipe_of, train

REPORTED = {
    "baseline": "97.19",
    "baseline_weighted_sampling": "96.25",
    "baseline_hard_mining_16": "98.05",
    "baseline_hard_mining_32": "97.81",
    "baseline_hard_mining_64": "92.42",
    "baseline_dropout": "94.84",
    "baseline_dropout_reduced": "96.56",
    "baseline_dropout_light": "97.34",
    "baseline_deep": "97.11",
    "baseline_deep_plain": "97.58",
    "keras_like": "94.69",
    "three_block_5x5": "89.53",
    "dual_path": "84.45",
    "efficientnet_b3": "94.53",
    "resnet50": "92.97",
}


def entries() -> dict[str, tuple[str, Recipe]]:
    """Return builder and recipe by entry: every network, and the baseline by other recipes."""
    found = {name: (name, recipe_of(name)) for name in list_models()}
    others = set(RECIPES) - set(found) - {"default"}
    return found | {f"baseline_{name}": ("baseline", RECIPES[name]) for name in sorted(others)}


def table(folder: str | os.PathLike[str] = "models/zoo") -> str:
    """Return the networks of a folder as a Markdown table, best on people never seen first.

    Image-level accuracy as reported and as found, in percent, with its interval; then accuracy and
    balanced accuracy, mild and moderate pooled, on people never seen, all per slice of the test
    part. Stars mark the leaders.
    """
    found = compare(folder=folder)
    lines = [
        "| network | image-level, reported | image-level, here | people never seen "
        "| the same, balanced over three classes | weights |",
        "|---|---|---|---|---|---|",
    ]
    networks = found.networks()
    for name, row in found.leaderboard().iterrows():
        cells = [REPORTED.get(name, "")]
        of = (("image", "accuracy"), ("subject", "accuracy"), ("subject", found.by))
        for protocol, metric in of:
            if (model := networks[name].get(protocol)) is None:
                cells.append("")
                continue
            value, low, high = found.evaluations[model].metrics["slice"][metric]
            cells.append(f"{100 * value:.2f} [{100 * low:.1f}, {100 * high:.1f}]")
        star = " *" if row["leading"] else ""
        lines.append(f"| `{name}`{star} | {' | '.join(cells)} | {row['parameters']:,.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m mri.zoo``; what is finished already is not done again."""
    zoo = entries()
    parser = argparse.ArgumentParser(
        prog="python -m mri.zoo", description="Train networks under both protocols; keep logits."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(zoo)}; all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", default="models/zoo")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(zoo)):
        parser.error(f"no network of that name, there are {', '.join(zoo)}. Received: {unknown}")
    if options.table:
        print(table(options.output))
        return 0
    scans, splits, groups = protocols()
    for name in options.names or zoo:
        builder, recipe = zoo[name]
        for seed in range(options.seeds):
            for protocol, split in splits.items():
                stem = f"{name}{f'-seed{seed}' if seed else ''}-{protocol}"
                path = Path(options.output) / f"{stem}.keras"
                # Not every model file is in the repository, but every card with its logits.
                if find_logits(path) and is_trained(
                    builder, scans, split, path, recipe=recipe, seed=seed
                ):
                    print(f"{path}: trained before", flush=True)
                    continue
                run = train(
                    builder,
                    scans,
                    split,
                    name=stem,
                    recipe=recipe,
                    seed=seed,
                    folder=options.output,
                    verbose=0,
                )
                if find_logits(run.path) is None:
                    keep_logits(run.path, scans, groups)
                figures = ", ".join(f"{k} {v:.3f}" for k, v in run.card["validation"].items())
                print(f"{run.path}: validation {figures}, {run.card['seconds']} s", flush=True)
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "fewer subjects than the")
    sys.exit(main())
