"""The demo's result as a page: the story in one sentence, then what each part of the run found.

``build`` reads the result that ``aisec-fast demo`` writes as JSON. What the result lacks, the page leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import kernels
from .page import (
    NORM_SIGNS,
    Card,
    Exhibit,
    Exhibits,
    Facts,
    Figure,
    Figures,
    Page,
    Picture,
    Section,
    Steps,
    Words,
    render,
)
from .plots import line

Result = Mapping[str, Any]

_COMMANDS = (
    ("aisec-fast info", "what this machine can run"),
    ("aisec-fast epsilon --help", "what a run of yours would cost, or the noise for a budget"),
    ("aisec-fast manifest FOLDER", "seal a folder: one file that names every file's hash"),
    ("aisec-fast verify FOLDER --manifest FILE", "tell which files were added, removed or changed since"),
    ("docs/", "what the kernels promise, and why it holds"),
)
EPSILON_COVERS = (
    "What ε covers: the training run, by dp-accounting, for one record replaced by a zero contribution. The "
    "rounding of sums over samples and to the noise lattice is paid for with a little more noise. The learning rate "
    "and the like were picked beforehand on these digits; ε does not count that."
)


def build(result: Result) -> str:
    """The page as HTML, self-contained.

    result: what ``aisec-fast demo --json`` writes; every key is optional:
      epsilon, delta, noise_multiplier, epochs, accuracy {plain, private}, step_time_ratio, seconds, date, command,
      versions {name: version}, machine (as ``aisec_fast.info()`` describes it),
      training {epoch: [..], plain: {accuracy: [..], loss: [..]}, private: {accuracy: [..]}, epsilon: {epoch, value}},
      robust_accuracy {plain: {eps: share}, private: {..}}, attack {name, norm, steps, restarts, samples},
      digits [{label, original, adversarial: rows of pixels from 0 to 1, plain, private: what the models say, eps}],
      manifest {verified, tampered_file (None: not found), files, algorithm, root},
      throughput: rows of ``aisec_fast.cli.throughput``, times in ns for each value.

    ModuleNotFoundError if plotly or Jinja2 (the extra ``report``) is missing.
    """
    sections = [make(result) for make in (_training, _robustness, _digits, _seal, kernels.section, _measured)]
    return render(
        Page(
            title="aisec_fast demo: " + _heading(result),
            heading=_heading(result),
            lead=_lead(result),
            cards=_cards(result),
            sections=[*filter(None, sections), _next()],
            data=result,
            data_name="demo.json",
            footer="Made by aisec-fast demo. Everything on this page is in this file; it fetches nothing.",
        )
    )


# --- The headline -----------------------------------------------------------------------------------------------------


def _heading(result: Result) -> str:
    manifest = result.get("manifest") or {}
    told = [
        ("trained privately", "epsilon" in result),
        ("attacked", bool(result.get("robust_accuracy"))),
        ("sealed", bool(manifest)),
        ("verified" if manifest.get("verified") else "found changed", bool(manifest)),
    ]
    words = [word for word, holds in told if holds] or ["measured"]
    return f"{', '.join(words).capitalize()}."


def _lead(result: Result) -> str:
    said = []
    accuracy = result.get("accuracy") or {}
    if "epsilon" in result and accuracy:
        said.append(
            f"A network that reads handwritten digits learned them with ε = {_number(result['epsilon'])} "
            f"and tells {_percent(accuracy['private'])} of new ones right; without privacy it is {_percent(accuracy['plain'])}."
        )
    if attacked := at_middle_eps(result):
        eps, plain, private = attacked
        size = f"that moves every pixel by up to {eps}" if _norm(result) == "linf" else f"of size {eps}"
        said.append(
            f"After an attack {size}, {_percent(private)} of its answers still hold (plain: {_percent(plain)})."
        )
    if manifest := result.get("manifest"):
        verified = "Its sealed files verify" if manifest.get("verified") else "Its sealed files do not verify"
        found = manifest.get("tampered_file")
        said.append(
            f"{verified}, and {f'one flipped byte in a copy of {found} was found' if found else 'a flipped byte was missed'}."
        )
    if "seconds" in result:
        said.append(f"Every figure was computed in this one run of {result['seconds']:.0f} seconds.")
    return " ".join(said)


def _cards(result: Result) -> list[Card]:
    cards = []
    if accuracy := result.get("accuracy"):
        cost = 100 * (accuracy["plain"] - accuracy["private"])
        cards.append(
            Card(
                "Private accuracy",
                _percent(accuracy["private"]),
                f"plain {_percent(accuracy['plain'])}: privacy costs {cost:.1f} points"
                if cost >= 0
                else f"plain {_percent(accuracy['plain'])}",
            )
        )
    if "epsilon" in result:
        noise = result.get("noise_multiplier")
        note = f"at δ = {result['delta']:g}".replace("e-0", "e-") if "delta" in result else ""
        cards.append(Card("Privacy ε", _number(result["epsilon"]), f"{note}, noise {noise:.2f}" if noise else note))
    if attacked := at_middle_eps(result):
        eps, plain, private = attacked
        cards.append(Card("Under attack", _percent(private), f"plain {_percent(plain)}, eps {eps}"))
    if "step_time_ratio" in result:
        cards.append(Card("A private step", f"{result['step_time_ratio']:.2f}\u00d7", "the time of a plain one"))
    if manifest := result.get("manifest"):
        whole = manifest.get("verified") and manifest.get("tampered_file")
        found = manifest.get("tampered_file")
        cards.append(
            Card(
                "Seal",
                "Verified" if manifest.get("verified") else "Broken",
                f"tampered {found} found" if found else "tampering was missed",
                "good" if whole else "bad",
            )
        )
    return cards


# --- Sections ---------------------------------------------------------------------------------------------------------


def _training(result: Result) -> Section | None:
    training = result.get("training") or {}
    epochs, both = training.get("epoch") or [], {name: training.get(name) or {} for name in ("plain", "private")}
    figures = []
    curves = [
        line(name, epochs, curve["accuracy"], name, dash="dot" if name == "plain" else None)
        for name, curve in both.items()
        if curve.get("accuracy")
    ]
    if epochs and curves:
        ends = ", ".join(f"{curve['name']} {_percent(curve['y'][-1])}" for curve in curves)
        figures.append(
            Figure(
                "accuracy",
                "Accuracy on images that neither model trained on",
                f"Lines of the accuracy over {len(epochs)} epochs; at the end: {ends}",
                curves,
                _axes("epoch", "accuracy", ".0%"),
            )
        )
    spent = training.get("epsilon") or {}
    if spent.get("value"):
        figures.append(
            Figure(
                "epsilon",
                "Privacy spent: ε over the epochs",
                f"A line of epsilon over the epochs, up to {_number(spent['value'][-1])}",
                [line("ε", spent["epoch"], spent["value"], "private")],
                _axes("epoch", "ε", "~g", from_zero=True),
            )
        )
    if epochs and both["plain"].get("loss"):
        figures.append(
            Figure(
                "loss",
                "Loss of the plain run",
                f"A line of the training loss over {len(epochs)} epochs",
                [line("plain", epochs, both["plain"]["loss"], "plain", dash="dot")],
                _axes("epoch", "cross-entropy", "~g", from_zero=True),
                note="None is shown for the private run: a loss on training data is itself private.",
            )
        )
    if not figures:
        return None
    intro = (
        "The same network from the same start, once plainly and once with clipped gradients and exact Gaussian noise."
    )
    return Section(
        "training", "Training", "Trained with and without privacy", intro, [Figures(figures[:1]), Figures(figures[1:])]
    )


def _robustness(result: Result) -> Section | None:
    robust = result.get("robust_accuracy") or {}
    attack = result.get("attack") or {}
    curves = []
    for name, symbol in (("plain", "circle"), ("private", "diamond")):
        points = _points(robust.get(name) or {})
        if points:
            sizes, shares = zip(*points, strict=True)
            curves.append(line(name, sizes, shares, name, dash="dot" if name == "plain" else None, symbol=symbol))
    if not curves:
        return None
    title = "Answers that survive the attack"
    norm = NORM_SIGNS.get(str(attack.get("norm")).lower(), attack.get("norm", ""))
    figure = Figure(
        "robustness",
        title,
        "Lines of the robust accuracy, falling with the size of the attack: "
        + "; ".join(f"{c['name']} from {_percent(c['y'][0])} to {_percent(c['y'][-1])}" for c in curves),
        curves,
        _axes(f"size of the attack, eps{f' ({norm})' if norm else ''}", "robust accuracy", ".0%", from_zero=True),
        height=360,
    )
    counts = [
        f"{attack[key]:,} {word if attack[key] == 1 else word + 's'}"
        for key, word in (("steps", "step"), ("restarts", "restart"), ("samples", "image"))
        if isinstance(attack.get(key), int)
    ]
    details = ", ".join(filter(None, (norm, *counts)))
    intro = (
        f"{str(attack.get('name', 'the attack')).upper()}{f' ({details})' if details else ''} changes each image, within eps "
        "of the original, until the model errs. What is left is an upper bound: a stronger attack can only find more errors."
    )
    return Section("robustness", "Attack", "Attacked", intro, [Figures([figure])])


def _digits(result: Result) -> Section | None:
    digits = result.get("digits") or []
    exhibits = [_exhibit(digit) for digit in digits if digit.get("original") and digit.get("adversarial")]
    if not exhibits:
        return None
    intro = (
        "Pictures that the attack changed to most effect. The third of each shows what it added (blue) and took away "
        "(orange), amplified until the strongest change is full."
    )
    return Section("digits", "Digits", "The worst adversarial digits", intro, [Exhibits(exhibits)])


def _exhibit(digit: Result) -> Exhibit:
    label, original, adversarial = digit.get("label"), digit["original"], digit["adversarial"]
    change = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(original, adversarial, strict=True)]
    most = max((abs(value) for row in change for value in row), default=0.0) or 1.0
    eps = f", eps {digit['eps']:g}" if "eps" in digit else ""
    return Exhibit(
        f"A {label}{eps}",
        [
            Picture("original", f"The digit {label} as it was scanned", original),
            Picture("attacked", f"The same digit after the attack{eps}", adversarial),
            Picture(
                f"change \u00d7{round(1 / most):,}",
                f"What the attack changed, amplified {round(1 / most):,} times; at most {most:.2g} in a pixel",
                [[value / most for value in row] for row in change],
                signed=True,
            ),
        ],
        [(f"{name} says", str(digit[name]), digit[name] == label) for name in ("plain", "private") if name in digit],
    )


def _seal(result: Result) -> Section | None:
    manifest = result.get("manifest")
    if not manifest:
        return None
    algorithm = str(manifest.get("algorithm", "")).upper().replace("SHA256", "SHA-256")
    files, root, found = manifest.get("files"), manifest.get("root"), manifest.get("tampered_file")
    steps = [
        Card(
            "Sealed",
            f"{files:,} file{'s' if files != 1 else ''}" if files is not None else "The model",
            f"{algorithm} of all" if root else algorithm,
            code=str(root or ""),
        ),
        Card(
            "Checked",
            "Verified" if manifest.get("verified") else "Does not verify",
            "every file as it was sealed" if manifest.get("verified") else "some file is not as it was sealed",
            "good" if manifest.get("verified") else "bad",
        ),
        Card(
            "One byte flipped in a copy",
            "Found" if found else "Missed",
            f"changed: {found}" if found else "verification did not notice",
            "good" if found else "bad",
        ),
    ]
    intro = "The manifest names the hash of every file of the saved model. Whoever has it can tell any change since."
    return Section("seal", "Seal", "Sealed and verified", intro, [Steps(steps)])


def _measured(result: Result) -> Section | None:
    machine, versions = result.get("machine") or {}, result.get("versions") or {}
    facts: list[tuple[str, str | None]] = [
        ("machine", result.get("machine_class") or machine.get("processor")),
        ("system", machine.get("system")),
        ("cores, threads used", _joined(machine, ("cores", "threads"))),
        ("instruction set", machine.get("instruction_set")),
        ("CUDA devices", _joined(machine.get("cuda") or {}, ("devices",))),
        ("load by other programs", f"{machine['load']:.2f}" if isinstance(machine.get("load"), float) else None),
        ("date", result.get("date")),
        ("command", result.get("command")),
        ("epochs", _joined(result, ("epochs",))),
        ("noise multiplier", _number(result["noise_multiplier"]) if result.get("noise_multiplier") else None),
        ("whole run", f"{result['seconds']:.1f} s" if "seconds" in result else None),
        *((name, str(version)) for name, version in versions.items()),
    ]
    shown = [(name, str(text)) for name, text in facts if text]
    if not shown:
        return None
    intro = (
        "All contenders of a kernel run in interleaved rounds, so that what else the machine does hits all alike; each time "
        "is the median. The ratio of step times leaves data loading out."
    )
    covers = [Words([EPSILON_COVERS])] if "epsilon" in result else []
    return Section("measured", "Method", "How it was measured", intro, [*covers, Facts(shown)])


def _next() -> Section:
    return Section("next", "Next", "What to try next", "", [Facts(_COMMANDS, code=True)])


# --- Words and numbers ------------------------------------------------------------------------------------------------


def _axes(x: str, y: str, format_: str, *, from_zero: bool = False) -> dict[str, Any]:
    """Titles and formats (of d3) of the axes; what the pointer shows has one digit more."""
    shown = ".1%" if format_ == ".0%" else ".3~g"
    return {
        "xaxis": {"title": {"text": x}},
        "yaxis": {
            "title": {"text": y},
            "tickformat": format_,
            "hoverformat": shown,
            **({"rangemode": "tozero"} if from_zero else {}),
        },
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"


def _number(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:.2f}"


def _points(shares: Mapping[str, float]) -> list[tuple[float, float]]:
    return sorted((float(eps), share) for eps, share in shares.items())


def at_middle_eps(result: Result) -> tuple[str, float, float] | None:
    """What is left of the plain and the private model at the middle size of attack: neither the kindest nor the worst."""
    robust = result.get("robust_accuracy") or {}
    plain, private = (dict(_points(robust.get(name) or {})) for name in ("plain", "private"))
    common = sorted(eps for eps in plain if eps in private and eps > 0)
    if not common:
        return None
    eps = common[len(common) // 2]
    return f"{eps:g}", plain[eps], private[eps]


def _norm(result: Result) -> str:
    attack: Mapping[str, Any] = result.get("attack") or {}
    return str(attack.get("norm", "")).lower()


def _joined(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    found = [str(values[key]) for key in keys if values.get(key) is not None]
    return ", ".join(found) or None
