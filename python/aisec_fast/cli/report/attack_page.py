"""An adversarial evaluation as a page: accuracy against eps, what each attack did, and what to doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .page import NORM_SIGNS, Block, Card, Column, Facts, Figure, Figures, Page, Section, Table, Words, render
from .plots import line

if TYPE_CHECKING:
    from ...adversarial._report import Report


def build(report: Report) -> str:
    """The page as HTML, self-contained. ModuleNotFoundError without plotly or Jinja2 (the extra ``report``)."""
    count = len(report.fooled_at)
    eps, norm = report.eps[-1], NORM_SIGNS[report.norm]
    names = ", ".join(attack["name"] for attack in report.settings["attacks"])
    return render(
        Page(
            title="aisec_fast adversarial evaluation",
            heading=f"{report.robust_accuracy:.2%} robust at {norm} ε = {eps:g}.",
            lead=f"{count:,} samples, of which the model gets {report.clean_accuracy:.2%} right, attacked by {names}. Each "
            "attack got the samples that those before it had left; every success was checked on the model itself.",
            cards=[
                Card("Clean accuracy", f"{report.clean_accuracy:.2%}", f"{count:,} samples"),
                *(Card(f"Robust at ε = {at:g}", f"{share:.2%}", norm) for at, share in report.curve.items()),
                Card(
                    "Warnings",
                    str(len(report.warnings)),
                    "signs of masked gradients",
                    "bad" if report.warnings else "good",
                ),
            ],
            sections=[_doubts(report), _curve(report), _attacks(report), _about(report)],
            data=report.to_dict(),
            data_name="evaluation.json",
            footer="Made by aisec_fast.adversarial.evaluate. Everything on this page is in this file; it fetches nothing.",
        )
    )


def _doubts(report: Report) -> Section:
    said = [f"{finding.code}: {finding.message}." for finding in report.warnings]
    if report.unconfirmed:
        said.append(
            f"{report.unconfirmed} samples fooled the model during an attack but not in the last look; they count as robust."
        )
    nothing = "Nothing that was looked at speaks against these figures. That is no proof: an attack made for this model may find more."
    return Section("doubts", "Doubts", "What speaks against these figures", "", [Words(said or [nothing])])


def _curve(report: Report) -> Section:
    x, y = [0.0, *report.curve], [report.clean_accuracy, *report.curve.values()]
    figure = Figure(
        "curve",
        "Accuracy against ε",
        "Share of samples that the model gets right whatever the attacks do: "
        + ", ".join(f"{share:.1%} at {eps:g}" for eps, share in zip(x, y, strict=True)),
        [line("accuracy", x, y, "ours")],
        {
            "xaxis": {"title": {"text": f"ε ({NORM_SIGNS[report.norm]})"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1.02], "tickformat": ".0%"},
        },
    )
    return Section("curve", "Curve", "Accuracy under attack", "", [Figures([figure])])


def _attacks(report: Report) -> Section:
    rows: list[dict[str, Any]] = [
        {**vars(stage), "eps": f"{stage.eps:g}", "robust_accuracy": f"{stage.robust_accuracy:.2%}"}
        for stage in report.stages
    ]
    columns = [
        Column("eps", "ε", choose=len(report.eps) > 1),
        Column("attack", "attack", choose=True),
        Column("samples", "samples", 0),
        Column("newly_fooled", "newly fooled", 0),
        Column("robust_accuracy", "robust after it"),
        Column("seconds", "seconds", 1),
        Column("forward_rows", "forward rows", 0),
        Column("gradient_rows", "gradient rows", 0),
    ]
    blocks: list[Block] = [Table("attacks", "Attacks in their order", columns, rows)]
    intro = "Rows are samples given to the model: in all, and those with a backward pass."
    return Section("attacks", "Attacks", "What each attack did", intro, blocks)


def _about(report: Report) -> Section:
    settings = {key: value for key, value in report.settings.items() if key != "attacks"}
    facts = [(name, str(value)) for name, value in settings.items()]
    for attack in report.settings["attacks"]:
        facts.append((attack["name"], ", ".join(f"{key} {value}" for key, value in attack.items() if key != "name")))
    facts += [("seed", str(report.seed)), *((name, version) for name, version in report.versions.items())]
    return Section("settings", "Settings", "How it was measured", "", [Facts(facts)])
