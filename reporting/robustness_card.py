"""The robustness card of workflows/robustness.py as a table, and in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from reporting.report import Cells, Shown, cell, number

_CHANCE = 0.05  # that the sentence names a cost where there is none


def cells(name: str, rows: Sequence[Mapping[str, Any]], metric: Shown) -> Cells:
    """Returns the card of the model `name` as a table; arguments as for `conclusion`."""
    columns = (name, "texts changed, %", metric["title"], "difference", "ECE")
    lines = [
        (
            row["title"],
            f"{100 * row['changed']:.1f}",
            cell(row["metrics"][metric["name"]], metric),
            cell(row["difference"], metric),
            number(row["ece"]),
            _flipped(row),
        )
        for row in rows
    ]
    return (*columns, "predictions changed, %"), lines


def conclusion(rows: Sequence[Mapping[str, Any]], metric: Shown) -> str:
    """Returns a sentence on the perturbation that costs most, and whether it may be chance.

    The greatest of several differences is compared with what the greatest of as many without any
    effect would be (Bonferroni).

    Args:
        rows: from workflows.robustness.robustness.
        metric: the one that 'difference' is about; see report.shown.
    """
    sign = -1 if metric["higher_is_better"] else 1
    tried = [row for row in rows if row["changed"]]
    title = metric["title"].removesuffix(", %")
    capital = title[0].upper() + title[1:]
    if not tried:
        return "No perturbation changes a text."
    values = [row["difference"]["value"] for row in tried]
    if None in values or not np.isfinite(values).all():  # a file holds null for what is no number
        return f"{capital} has no value on these texts: no conclusion is possible."
    worst = max(tried, key=lambda row: sign * row["difference"]["value"])
    cost, error = sign * worst["difference"]["value"], worst["difference"]["standard_error"]
    if cost <= 0:
        return f"None of {len(tried)} perturbations makes {title} worse."
    text = (
        f"Of {len(tried)} perturbations this costs most: {worst['title']}. {capital} "
        f"{'falls' if metric['higher_is_better'] else 'rises'} by "
        f"{cell({'value': cost, 'standard_error': error}, metric)}"
        f"{' points' if metric['scale'] == 100 else ''}"
    )
    if worst["flipped"]:
        text += f"; {_flipped(worst)} % of predictions change"
    # Of one example there is no error: NaN, and null in files.
    chance = error is None or not cost > norm.isf(_CHANCE / len(tried)) * error
    return text + "." + chance * f" As the worst of {len(tried)}, it may be chance."


def _flipped(row: Mapping[str, Any]) -> str:
    return cell(row["flipped"], {"scale": 100, "digits": 1}) if row["flipped"] else ""
