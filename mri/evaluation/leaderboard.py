"""What a comparison of models found: who leads, who cannot be told apart, and at what cost."""

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
"""What marks a repeat of a network with another seed in the name of its file."""

INFLATED = "subjects in training too: inflated"
PROTOCOLS = ("subject", "image", "unknown")
COSTS = ("parameters", "size_mb", "ms_1", "ms_64", "seconds")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; shows as its leaderboard.

    Attributes
    ----------
    table : DataFrame
        One row a file, best first: subject-wise models before image-level ones, because the
        figures of the latter are inflated, and files that could not be evaluated last, with the
        reason in the column `note`.
    evaluations : dict of str to Evaluation
        By model name, for those that could be evaluated.
    p_values : dict of str to DataFrame
        By protocol: Holm-adjusted p-values of all pairs, from `pairwise`, of the models measured on
        the same slices as the best of that protocol; of a network trained with several seeds, the
        first.
    by : str
        The metric of the ranking and the tests.
    rows : dict of str to ndarray of int
        By model name, the rows of the scans that it was measured on.
    files : dict of str to Path
        By model name; a file may be absent where a card and kept logits were enough.
    evaluated : tuple of str
        The models that were run this time; the others' logits were kept from before.
    claims : dict of str to str
        By model name: 'verified', or 'claimed' and why; see `mri.evaluation.claims`.
    """

    table: pd.DataFrame
    evaluations: dict[str, Evaluation]
    p_values: dict[str, pd.DataFrame]
    by: str
    rows: dict[str, np.ndarray]
    files: dict[str, Path]
    evaluated: tuple[str, ...]
    claims: dict[str, str] = field(default_factory=dict)

    def leading(self, protocol: str = "subject") -> list[str]:
        """Return the models of a protocol that cannot be told from its best, itself first.

        Where any figure was verified, those that are only claimed do not lead.
        """
        p = self.p_values.get(protocol)
        if p is None:
            return []
        verified = [name for name in p.index if self.claims.get(name) == "verified"]
        among = verified or list(p.index)
        return [name for name in leading_group(p, among[0]) if name in among]

    def leaderboard(self) -> pd.DataFrame:
        """Return a row a network, its figures under both protocols side by side.

        What a network costs is that of its subject-wise file, where there is one; repeats with
        other seeds are left to `seeds`.
        """
        rows, leading = {}, self.leading()
        table = self.table.set_index("model")
        for name, models in self.networks().items():
            row = table.loc[next(iter(models.values())), list(COSTS)].to_dict()
            row["leading"] = any(model in leading for model in models.values())
            for protocol, model in models.items():
                estimate = self.evaluations[model].metrics["slice"][self.by]
                row[protocol] = estimate.value
                row[f"{protocol}_interval"] = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
            rows[name] = row
        columns = [f"{p}{end}" for p in PROTOCOLS for end in ("", "_interval")]
        columns = ["leading", *columns, *COSTS]
        return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)

    def networks(self) -> dict[str, dict[str, str]]:
        """Return by network, best first, its model under each protocol.

        Its files are those named alike but for ``-subject`` and ``-image``; where two of one
        protocol would be called the same, each keeps its whole name. Without repeats by seed.
        """
        measured = self.table[self.table["protocol"].isin(PROTOCOLS)]
        measured = measured[~measured["model"].str.contains(SEED)]
        pairs = list(zip(measured["model"], measured["protocol"], strict=True))
        short = [(model.removesuffix(f"-{protocol}"), protocol) for model, protocol in pairs]
        found: dict[str, dict[str, str]] = {}
        for (model, protocol), key in zip(pairs, short, strict=True):
            name = model if short.count(key) > 1 else key[0]
            found.setdefault(name, {})[protocol] = model
        return found

    def best(self, protocol: str = "subject", n: int = 1) -> list[str]:
        """Return the names of the first `n` models of a protocol, without repeats by seed."""
        names = self.table["model"][self.table["protocol"] == protocol]
        return names[~names.str.contains(SEED)].head(n).tolist()

    def recalls(self, protocol: str = "subject") -> pd.DataFrame:
        """Return a row a model, a column a class: its recall per slice, with the class's support.

        Slices of one person are alike: see the note of each evaluation on classes of few people.
        """
        rows = {}
        for name in self.best(protocol, len(self.table)):
            found = self.evaluations[name]
            support = found.confusion().sum(1)
            rows[name] = {
                f"{of} (n = {n})": found.metrics["slice"][f"recall_{of}"].value
                for of, n in zip(found.class_names, support, strict=True)
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def disagreements(self, first: str, second: str) -> pd.DataFrame:
        """Return the test slices that two models of the same test part answer differently.

        Columns: position (in the test part), subject (by rank), label, and the class each names;
        those on which the two are surest of their answers first.
        """
        one, two = (self.evaluations[name].sample() for name in (first, second))
        if not np.array_equal(one.labels, two.labels):
            raise ValueError(f"{first!r} and {second!r} were measured on other slices")
        a, b = one.logits.argmax(1), two.logits.argmax(1)
        rows = np.arange(len(a))
        at_odds = (one.logits - two.logits)[rows, a] - (one.logits - two.logits)[rows, b]
        chosen = np.flatnonzero(a != b)
        chosen = chosen[np.argsort(-at_odds[chosen], kind="stable")]
        columns = {"position": chosen, "subject": one.units[chosen], "label": one.labels[chosen]}
        return pd.DataFrame(columns | {first: a[chosen], second: b[chosen]})

    def pareto(self, cost: str = "parameters", protocol: str = "subject") -> list[str]:
        """Return the models than which none is both better and cheaper, cheapest first.

        `cost` is a column of `table`: parameters, size_mb, ms_1, ms_64 or seconds.
        """
        of = self.table[self.table["model"].isin(self.best(protocol, len(self.table)))]
        of = of.dropna(subset=[cost])
        score = -of[self.by] if self.by == "log_loss" else of[self.by]
        of = of.assign(score=score).sort_values([cost, "score"], ascending=[True, False])
        ahead = of["score"].cummax().shift(fill_value=-np.inf)
        return of["model"][of["score"] > ahead].tolist()

    def conclusion(self) -> str:
        """Return what the figures allow to say, in one paragraph made from them."""
        metric, told = metric_label(self.by).lower(), []
        for protocol, who in (("subject", "On people never seen"), ("image", "Image-level")):
            if protocol not in self.p_values:
                continue
            names, leading = list(self.p_values[protocol]), self.leading(protocol)
            estimate = self.evaluations[names[0]].metrics["slice"][self.by]
            told.append(
                f"{who}, {names[0]} is first of {len(names)} with a {metric} of {estimate}."
            )
            alike, worse = len(leading) - 1, len(names) - len(leading)
            if not worse and alike:
                told.append("None of the others can be told from it.")
            elif worse:
                told.append(
                    f"{alike} of the others cannot be told from it, {worse} "
                    f"{'are' if worse > 1 else 'is'} worse (p < 0.05 after Holm's correction)."
                    if alike
                    else f"{'All others are' if worse > 1 else 'The other is'} worse "
                    "(p < 0.05 after Holm's correction)."
                )
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
        """Return mean and standard deviation over seeds of recipes that were trained several times.

        Columns: network, protocol, seeds, mean and sd of the metric of the ranking. Files of one
        network are those named alike but for ``-seed<number>``.
        """
        network = self.table["model"].str.replace(SEED, "", regex=True)
        measured = self.table.assign(network=network)[self.table["protocol"].isin(PROTOCOLS)]
        of = measured.groupby(["network", "protocol"], sort=False)[self.by]
        found = of.agg(seeds="size", mean="mean", sd="std").reset_index()
        return found[found["seeds"] > 1].reset_index(drop=True)

    def _repr_html_(self) -> str:
        board = self.leaderboard().dropna(axis="columns", how="all")
        leading = board.pop("leading") if "leading" in board else pd.Series(dtype=bool)
        shade = ["background-color: #0072B244" if of else "" for of in leading]
        digits = {"subject": "{:.3f}", "image": "{:.3f}", "unknown": "{:.3f}", "ms_1": "{:.1f}"}
        digits |= {"parameters": "{:,.0f}", "size_mb": "{:.1f}", "ms_64": "{:.0f}"}
        digits["seconds"] = "{:.0f}"
        board.index = board.index.map(for_line)
        styled = board.style.format(digits, na_rep="–", escape="html").format_index(escape="html")
        styled = styled.apply(lambda _: shade, axis="index")
        said = ~self.table["note"].isin(["", "verified", f"verified; {INFLATED}"])
        refused = self.table.loc[said, ["model", "note"]].map(for_line)
        notes = "" if refused.empty else refused.to_html(index=False)
        caption = f"{metric_label(self.by)} per slice; shaded: not told from the best of strangers"
        return styled.set_caption(caption).to_html() + notes

    def __repr__(self) -> str:
        said = self.table.to_string(float_format="{:.3f}".format, na_rep="–")
        return for_terminal(said)
