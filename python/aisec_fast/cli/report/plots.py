"""Traces and shapes as plotly's JSON, in the colours of ``style.css``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def line(
    name: str,
    x: Sequence[Any],
    y: Sequence[float | None],
    colour: str,
    *,
    dash: str | None = None,
    symbol: str = "circle",
    **more: Any,
) -> dict[str, Any]:
    """A line; ``colour`` is a variable of the style sheet ("private"), ``dash`` and ``symbol`` tell lines apart without it."""
    return {
        "type": "scatter",
        "name": name,
        "x": list(x),
        "y": list(y),
        "mode": "lines+markers" if len(x) <= 24 else "lines",
        "line": {"color": f"var(--{colour})", "width": 2.5, **({"dash": dash} if dash else {})},
        "marker": {"color": f"var(--{colour})", "size": 8, "symbol": symbol},
        "cliponaxis": False,
        **more,
    }


def bars(
    name: str,
    labels: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
    hatched: Sequence[bool],
    unit: str,
) -> dict[str, Any]:
    """Horizontal bars from top to bottom, the value at each end."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": list(labels),
        "x": list(values),
        "text": [f"{value:.3g}" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": f"%{{y}}: %{{x:.4g}} {unit}<extra></extra>",
        "marker": {
            "color": [f"var(--{colour})" for colour in colours],
            "line": {"color": [f"var(--{colour})" for colour in colours], "width": 1},
            # "overlay" would be prettier, but makes plotly warn about a list of colours.
            "pattern": {
                "shape": ["/" if one else "" for one in hatched],
                "fillmode": "replace",
                "size": 6,
                "solidity": 0.4,
            },
        },
    }


def upright_line(x: float) -> list[dict[str, Any]]:
    """A dashed line across the plot at ``x``, for the ``shapes`` of plotly's layout; its pale rim shows it on any colour."""
    place = {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return [
        {**place, "line": {"color": "var(--surface)", "width": 4}},
        {**place, "line": {"color": "var(--ink)", "width": 2, "dash": "dash"}},
    ]
