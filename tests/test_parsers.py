"""Every parser of what others wrote, against any bytes: tests/fuzz/properties.py says what must hold.

Here hypothesis tries a little of it in every run, together with what `make fuzz` and reviews once found.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aisec_fast
from aisec_fast import ManifestError, _backends
from aisec_fast.cli import main
from aisec_fast.integrity import Manifest

from .fuzz import properties, seeds
from .fuzz.mutations import mutate_json
from .fuzz.properties import PROPERTIES

DEEP = 100_000  # nested deeper than any stack
ALL_WORDS = sorted({word.encode() for words in seeds.WORDS.values() for word in words})


def mutated(name: str) -> st.SearchStrategy[bytes]:
    """Inputs near a seed: words put together, and for JSON a few of its values changed."""
    words = st.sampled_from([*(word.encode() for word in seeds.WORDS[name]), *seeds.SEEDS[name]])
    joined = st.lists(words | st.binary(max_size=4), max_size=12).map(b"".join)
    if name not in seeds.JSON:
        return joined

    def change(data: bytes, seed: int, count: int) -> bytes:
        rng = random.Random(seed)
        for _ in range(count):
            data = mutate_json(data, rng, lambda part: part[::-1] + rng.choice(ALL_WORDS))
        return data

    texts = st.sampled_from(seeds.SEEDS[name])
    return st.builds(change, texts, st.integers(0, 2**32), st.integers(0, 6)) | joined


@pytest.mark.parametrize("name", PROPERTIES)
def test_any_bytes(name: str) -> None:
    # derandomized, so the same in every run; make fuzz goes further
    @settings(max_examples=150)
    @given(mutated(name))
    def holds(data: bytes) -> None:
        PROPERTIES[name](data)

    for seed in seeds.SEEDS[name]:
        PROPERTIES[name](seed)
    holds()


def test_make_fuzz_leaves_no_parser_out() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    listed = re.search("^FUZZED := (.*)$", makefile, re.MULTILINE)
    assert listed
    assert listed[1].split() == list(PROPERTIES) == list(seeds.SEEDS) == list(seeds.WORDS)


def changed(name: str, change: Callable[[Any], Any]) -> bytes:
    value = json.loads(seeds.SEEDS[name][0])
    change(value)
    return json.dumps(value).encode()


def row(**more: Any) -> bytes:
    return changed("results", lambda document: document["rows"][0].update(more))


@pytest.mark.parametrize(
    "data",
    [
        row(ns=10**400),  # no float
        row(ns=5e-324, quartiles=[1e308, 1e308]),  # a ratio beyond float64
        row(dtype=float("inf")),
        row(shape={}),
        row(shape=[8.5]),
        row(shape=[10**400]),
        row(threads=-1),
        row(backend=[[]]),
        row(busy=None),
        changed("results", lambda document: document.update(version=[])),
        changed("results", lambda document: document["machine"].update(model={})),
        changed("results", lambda document: document.update(format="x" * 10_000)),
        changed("results", lambda document: document.update(rows=["x" * 10_000])),
        b'{"format": 1, "rows": ' + b"[" * DEEP,
        *(b'{"format": ' + b"[" * depth + b"]" * depth + b', "rows": []}' for depth in range(100, 1000, 50)),
        *(
            json.dumps({"format": 1, "rows": [], "commit": "", "date": "", "machine": {"model": ""}})[:-1].encode()
            + b', "version": '
            + b"[" * depth
            + b"]" * depth
            + b"}"
            for depth in range(100, 1000, 50)
        ),
    ],
)
def test_results_that_are_none(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    properties.results(data)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(seeds.SEEDS["results"][0])
    bad.write_bytes(data)
    assert main(["bench", "--compare", str(good), str(bad)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["hash", "x", "--max-threads"], ["epsilon", "--sample-rate"]])
@pytest.mark.parametrize(
    "text", ["9" * 400, "9" * 5000, "944e944", "11e9111111111111", "1/0", "nan", "inf", "1/1e-400", "²"]
)
def test_numbers_that_are_none(command: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ends at once: 11e9111111111111 written out in full would fill any memory."""
    assert main([*command, text]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "is no number" in message
    assert len(message) < 300


@pytest.mark.parametrize("text", ["0", "-1", "x", "9" * 19, "9" * 5000, "1.5", "²"])
def test_a_number_of_threads_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AISEC_FAST_NUM_THREADS", text)
    with pytest.raises(ValueError, match=r"^AISEC_FAST_NUM_THREADS is .{3,110}, expected an integer of at least 1$"):
        _backends._default_threads()


def test_too_many_threads() -> None:
    before = aisec_fast.get_num_threads()
    with pytest.raises(ValueError, match="n is 9223372036854775808, expected at most 9223372036854775807"):
        aisec_fast.set_num_threads(2**63)
    assert aisec_fast.get_num_threads() == before


def test_a_name_of_very_many_parts_is_read_at_once() -> None:
    """Before, two megabytes of "a/" took hours: every folder above the name was written out and looked up."""
    name = "a/" * 1_000_000 + "a"
    ignore = ["a/" * count + "b" for count in range(500)]
    assert list(Manifest({name: bytes(32)}, ignore=ignore).digests) == [name]
    with pytest.raises(ManifestError, match="not ignored"):
        Manifest({name: bytes(32)}, ignore=[*ignore, "a/a/a/a"])
    with pytest.raises(ManifestError, match="not ignored"):
        Manifest({"a/b": bytes(32)}, ignore=["a/b"])
    Manifest({"ab/c": bytes(32)}, ignore=["a", "b", "c", "ab/cd", "ab/c/d"])  # none is a folder above it


@pytest.mark.parametrize(
    "data",
    [
        b"[" * DEEP,
        b'{"x": ' * DEEP,
        b'{"' + b"k" * 10_000 + b'": 1, "' + b"k" * 10_000 + b'": 2}',
        changed("manifest", lambda whole: whole["predicate"]["serialization"].update(ignore_paths=["/" + "x" * 9999])),
        changed("manifest", lambda whole: whole["predicate"]["resources"][0].update(name="../" + "x" * 9999)),
        changed("manifest", lambda whole: whole["predicate"]["serialization"].update(hash_type=10**400)),
        b'{"_type": ' + b"9" * 5000 + b"}",
        b'"\xff"',
    ],
)
def test_manifests_that_are_none(data: bytes, tmp_path: Path) -> None:
    properties.manifest(data)
    (tmp_path / "m.json").write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        Manifest.load(tmp_path / "m.json")
    assert len(str(caught.value)) < 2000
