"""The result of a comparison: the best models, those not distinguishable, and their costs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mri._text import for_line, for_terminal
from mri.evaluation.metrics import Evaluation, metric_label
from mri.evaluation.significance import leading_group

SEED = re.compile(r"-seed[1-9]\d*(?=-|$)")
"""Part of a file name that marks a repeat of a network with another seed."""
_ANY_SEED = re.compile(r"-seed\d+(?=-|$)")  # Also that of the first one.

INFLATED = "subjects in training too: inflated"
PROTOCOLS = ("subject", "image", "unknown")
COSTS = ("parameters", "size_mb", "ms_1", "ms_64", "seconds")


def first_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are ranked, without repeats of another row's network."""
    ranked = table[table["protocol"].isin(PROTOCOLS)]
    network = ranked["model"].str.replace(_ANY_SEED, "", regex=True)
    repeat = ranked["model"].str.contains(SEED)
    return ranked[~(repeat & network.isin(network[~repeat]))]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `compare`; it displays as a leaderboard.

    Attributes
    ----------
    table : one row per file, best first. Subject-wise models come before image-level ones, whose
        figures are inflated. Files that could not be evaluated come last; `note` says why
    evaluations : by model name, for models that could be evaluated
    p_values : by protocol, the Holm-corrected p-values of all pairs, from `pairwise`, of the
        models measured on the same slices, only the first seed of each network
    by : the metric of the ranking and the tests
    rows : by model name, int (n,): the rows of the scans on which it was measured
    files : by model name. A file may be absent if its card and kept logits were enough
    evaluated : the models that were run this time. The logits of all others were kept from before
    claims : by model name: 'verified', or 'claimed' and why; see `mri.evaluation.claims`
    unit : 'slice' or 'subject', of which the figures of the ranking and the tests are
    """

    table: pd.DataFrame
    evaluations: dict[str, Evaluation]
    p_values: dict[str, pd.DataFrame]
    by: str
    rows: dict[str, np.ndarray]
    files: dict[str, Path]
    evaluated: tuple[str, ...]
    claims: dict[str, str] = field(default_factory=dict)
    unit: str = "slice"

    def leading(self, protocol: str = "subject") -> list[str]:
        """Return the best model of a protocol, and all not distinguishable from it.

        Where any figure was verified, those that are only claimed do not lead.
        """
        if not (among := self._ranked(protocol)):
            return []
        group = leading_group(self.p_values[protocol], among[0])
        return [name for name in group if name in among]

    def _ranked(self, protocol: str) -> list[str]:
        """Return the models that compete: the verified ones, or all where nothing is verified."""
        names = list(self.p_values.get(protocol, ()))
        return [name for name in names if self.claims.get(name) == "verified"] or names

    def leaderboard(self) -> pd.DataFrame:
        """Return one row per network, with its figures under both protocols side by side.

        The costs are those of the subject-wise file, if there is one. Repeats with other seeds are
        not included; see `seeds`.
        """
        rows, leading = {}, self.leading()
        table = self.table.set_index("model")
        for name, models in self.networks().items():
            row = table.loc[next(iter(models.values())), list(COSTS)].to_dict()
            row["leading"] = any(model in leading for model in models.values())
            for protocol, model in models.items():
                estimate = self.evaluations[model].metrics[self.unit][self.by]
                row[protocol] = estimate.value
                row[f"{protocol}_interval"] = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
            rows[name] = row
        columns = [f"{p}{end}" for p in PROTOCOLS for end in ("", "_interval")]
        columns = ["leading", *columns, *COSTS]
        return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)

    def networks(self) -> dict[str, dict[str, str]]:
        """Return for each network, best first, its model under each protocol.

        The files of a network have the same name except for ``-subject`` and ``-image``. If two
        files of one protocol would get the same name, each keeps its whole name. Repeats with other
        seeds are left out.
        """
        of = first_seeds(self.table)[["model", "protocol"]]
        pairs = list(of.itertuples(index=False, name=None))
        short = [(model.removesuffix(f"-{protocol}"), protocol) for model, protocol in pairs]
        found: dict[str, dict[str, str]] = {}
        for (model, protocol), key in zip(pairs, short, strict=True):
            name = model if short.count(key) > 1 else key[0]
            found.setdefault(name, {})[protocol] = model
        return found

    def best(self, protocol: str = "subject", n: int = 1) -> list[str]:
        """Return the best `n` models of a protocol, without repeats with other seeds."""
        of = first_seeds(self.table)
        return of.loc[of["protocol"] == protocol, "model"].head(n).tolist()

    def disagreements(self, first: str, second: str) -> pd.DataFrame:
        """Return the test slices that two models of the same test part classify differently.

        Columns: position (in the test part), subject (by rank), label, and the class of each model.
        Slices on which both models are surest of their answers come first.
        """
        one, two = (self.evaluations[name].sample(self.unit) for name in (first, second))
        of = [self.rows.get(name, np.empty(0)) for name in (first, second)]
        if not np.array_equal(one.labels, two.labels) or not np.array_equal(of[0], of[1]):
            raise ValueError(f"{first!r} and {second!r} were measured on other slices")
        a, b = one.logits.argmax(1), two.logits.argmax(1)
        rows = np.arange(len(a))
        at_odds = (one.logits - two.logits)[rows, a] - (one.logits - two.logits)[rows, b]
        chosen = np.flatnonzero(a != b)
        chosen = chosen[np.argsort(-at_odds[chosen], kind="stable")]
        columns = {"position": chosen, "subject": one.units[chosen], "label": one.labels[chosen]}
        return pd.DataFrame(columns | {first: a[chosen], second: b[chosen]})

    def pareto(self, cost: str = "parameters", protocol: str = "subject") -> list[str]:
        """Return the models that no other model beats in both figure and cost, cheapest first.

        `cost` is a column of `table`: parameters, size_mb, ms_1, ms_64 or seconds.
        """
        of = first_seeds(self.table).query("protocol == @protocol").dropna(subset=[cost])
        score = -of[self.by] if self.by == "log_loss" else of[self.by]
        of = of.assign(score=score).sort_values([cost, "score"], ascending=[True, False])
        ahead = of["score"].cummax().shift(fill_value=-np.inf)
        return of["model"][of["score"] > ahead].tolist()

    def conclusion(self) -> str:
        """Return the conclusion that the figures support, as one paragraph."""
        metric, told = metric_label(self.by).lower(), []
        for protocol, who in (("subject", "On people never seen"), ("image", "Image-level")):
            if not (names := self._ranked(protocol)):
                continue
            leading = self.leading(protocol)
            estimate = self.evaluations[names[0]].metrics[self.unit][self.by]
            told.append(
                f"{who}, {names[0]} is first of {len(names)} with a {metric} of {estimate}."
            )
            alike, worse = len(leading) - 1, len(names) - len(leading)
            of = f"{worse} {'are' if worse > 1 else 'is'}"
            if not alike:
                of = "All others are" if worse > 1 else "The other is"
            elif worse:
                told.append(
                    f"{alike} of the others {'are' if alike > 1 else 'is'} not statistically "
                    "distinguishable from it;"
                )
            else:
                told.append("None of the others is statistically distinguishable from it.")
            told += [f"{of} worse (p < 0.05 after Holm's correction)."] if worse else []
            if claimed := len(self.p_values[protocol]) - len(names):
                told.append(f"Not counted: {claimed} whose figures are claimed, not verified.")
        board = self.leaderboard()[["subject", "image"]].dropna()
        if len(board) > 2:
            gap = (board["image"] - board["subject"]).median()
            rank = board.corr("spearman").iloc[0, 1]
            told.append(
                f"Over {len(board)} networks, the image-level figure is {abs(gap):.2f} "
                f"{'higher' if gap > 0 else 'lower'} (median), and the two orders have a rank "
                f"correlation of {rank:.2f}."
            )
        if refused := int((self.table["protocol"] == "–").sum()):
            told.append(f"{refused} file{'s' * (refused > 1)} could not be measured.")
        return for_terminal(" ".join(told))

    def seeds(self) -> pd.DataFrame:
        """Return mean and standard deviation over the seeds of networks with several seeds.

        Columns: network, protocol, seeds, and mean and sd of the metric of the ranking. Files of
        one network have the same name except for ``-seed<number>``.
        """
        measured = self.table[self.table["protocol"].isin(PROTOCOLS)]
        network = measured["model"].str.replace(_ANY_SEED, "", regex=True)
        of = measured.assign(network=network).groupby(["network", "protocol"], sort=False)[self.by]
        found = of.agg(seeds="size", mean="mean", sd="std").reset_index()
        return found[found["seeds"] > 1].reset_index(drop=True)

    def _repr_html_(self) -> str:
        board = self.leaderboard().dropna(axis="columns", how="all")
        leading = board.pop("leading") if "leading" in board else pd.Series(dtype=bool)
        shade = ["background-color: #0072B244" if of else "" for of in leading]
        digits = dict.fromkeys(PROTOCOLS, "{:.3f}") | {"parameters": "{:,.0f}"}
        digits |= dict.fromkeys(["size_mb", "ms_1"], "{:.1f}")
        digits |= dict.fromkeys(["ms_64", "seconds"], "{:.0f}")
        board.index = board.index.map(for_line)
        styled = board.style.format(digits, na_rep="–", escape="html").format_index(escape="html")
        styled = styled.apply(lambda _: shade, axis="index")
        said = ~self.table["note"].isin(["", "verified", f"verified; {INFLATED}"])
        refused = self.table.loc[said, ["model", "note"]].map(for_line)
        notes = "" if refused.empty else refused.to_html(index=False)
        of = f"{metric_label(self.by)} per {self.unit}"
        told = f"{of}; shaded: not distinguishable from the best"
        return styled.set_caption(told).to_html() + notes

    def __repr__(self) -> str:
        return for_terminal(self.table.to_string(float_format="{:.3f}".format, na_rep="–"))
