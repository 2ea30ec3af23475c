"""The leakage report as one page for a browser, with the twins side by side."""

from __future__ import annotations

import base64
from html import escape

import cv2
import numpy as np

from mri.data.scans import Scans
from mri.subjects.leakage import Audit

SHOWN = 12
"""Pairs of twins on the page."""

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;"
    "border-bottom:1px solid #ddd}tbody th{text-align:left;font-weight:normal}"
    ".verdict{font-size:1.3em;font-weight:bold}figure{display:inline-block;margin:0 1em 1em 0}"
    "img{image-rendering:auto;width:160px}figcaption{font-size:.85em}"
)


def audit_html(found: Audit, train: Scans, test: Scans | None) -> str:
    """Return a page of HTML: the verdict first, then the figures, then twins side by side.

    Parameters
    ----------
    found : Audit
    train, test : Scans
        Those that were audited.
    """
    tables = [table.to_html(float_format="{:.3f}".format, na_rep="–")
              for table in (found.table, found.within) if len(table)]  # fmt: skip
    pairs = [] if test is None else _pairs(found, train, test)
    heading = "<h2>Test slices and their twins in the train part</h2>" if pairs else ""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Leakage report</title>"
        f"<style>{_STYLE}</style><h1>Leakage report</h1>"
        f"<p class='verdict {found.status}'>{escape(found.verdict)}</p>"
        f"{''.join(tables)}{heading}{''.join(pairs)}</html>"
    )


def _pairs(found: Audit, train: Scans, test: Scans) -> list[str]:
    """Return the most alike pairs, test slice on the left."""
    order = np.argsort(-np.nan_to_num(found.correlations, nan=-1), kind="stable")[:SHOWN]
    return [
        f"<figure>{_picture(test.images[i])} {_picture(train.images[found.twins[i]])}<figcaption>"
        f"test {i}: {escape(test.class_names[test.labels[i]])} · train {found.twins[i]}: "
        f"{escape(train.class_names[train.labels[found.twins[i]]])} · "
        f"r = {found.correlations[i]:.3f}</figcaption></figure>"
        for i in order.tolist()
    ]


def _picture(image: np.ndarray) -> str:
    data = base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()
    return f"<img alt='slice' src='data:image/png;base64,{data}'>"
