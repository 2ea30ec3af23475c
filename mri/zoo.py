"""Train every registered network under both protocols, and keep what a ranking needs."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from mri.models import list_models
from mri.predictions import find_logits, keep_logits
from mri.training import RECIPES, Recipe, protocols, recipe_of, train


def entries() -> dict[str, tuple[str, Recipe]]:
    """Return builder and recipe by entry: every network, and the baseline by other recipes."""
    found = {name: (name, recipe_of(name)) for name in list_models()}
    others = set(RECIPES) - set(found) - {"default"}
    return found | {f"baseline_{name}": ("baseline", RECIPES[name]) for name in sorted(others)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m mri.zoo``; what is finished already is not done again."""
    zoo = entries()
    parser = argparse.ArgumentParser(
        prog="python -m mri.zoo", description="Train networks under both protocols; keep logits."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(zoo)}; all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", default="models/zoo")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(zoo)):
        parser.error(f"no network of that name, there are {', '.join(zoo)}. Received: {unknown}")
    scans, splits, groups = protocols()
    for name in options.names or zoo:
        builder, recipe = zoo[name]
        for seed in range(options.seeds):
            for protocol, split in splits.items():
                run = train(
                    builder,
                    scans,
                    split,
                    name=f"{name}{f'-seed{seed}' if seed else ''}-{protocol}",
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
