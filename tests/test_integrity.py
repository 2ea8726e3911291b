"""Manifests: the format as model-signing writes it, every change found, nothing malformed let in."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aisec_fast
from aisec_fast import ManifestError, UnsupportedFileError, use_backend
from aisec_fast.hashing import hash_directory
from aisec_fast.integrity import Manifest, Verification

# The files behind tests/data/model_signing_statements.json, which model-signing 1.1.1 wrote (its "source" says how).
SAMPLE = {
    "a/b": b"in a folder\n",
    "a-b": b"a hyphen sorts before a slash\n",
    "a/b-c/d": b"deeper\n",
    "config.json": b"{}\n",
    ".hidden": b"hidden\n",
    "empty": b"",
    "big.bin": bytes(range(256)) * 8192,
    "with:colon": b":",
    "with\nnewline": b"\n",
    "back\\slash": b"\\",
    "grüße": b"u",
    "\N{GRINNING FACE}": b"smile",
    "\N{HALFWIDTH WHITE CIRCLE}": b"bmp",  # sorts before the face by code points, after it by UTF-16 units
    "tab\there": b"\t",
    'quote"': b'"',
    "skip/me": b"ignored",
    "model.sig": b"ignored too",
}
STATEMENTS = json.loads((Path(__file__).parent / "data" / "model_signing_statements.json").read_text())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    for name, data in SAMPLE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def in_order(statement: dict[str, Any]) -> dict[str, Any]:
    """model-signing keeps ignored paths as a set; everything else has one order."""
    statement = copy.deepcopy(statement)
    statement["predicate"]["serialization"]["ignore_paths"].sort()
    return statement


# --- The format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_the_statement_is_the_one_that_model_signing_writes(model: Path, tmp_path: Path, algorithm: str) -> None:
    manifest = Manifest.from_directory(model, algorithm=algorithm, ignore=["skip", "model.sig"])
    assert manifest.statement() == in_order(STATEMENTS[algorithm])
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps(STATEMENTS[algorithm]))
    assert Manifest.load(theirs) == manifest
    assert Manifest.load(theirs).verify(model)


def test_save_and_load(model: Path, tmp_path: Path) -> None:
    manifest = Manifest.from_directory(model, ignore=["skip"])
    manifest.save(tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_bytes().isascii()
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    assert Manifest.load(os.fsencode(tmp_path / "manifest.json")).statement() == manifest.statement()
    assert list(tmp_path.iterdir()) == [model, tmp_path / "manifest.json"]
    assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest = Manifest.from_directory(tmp_path / "empty")
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    assert manifest.verify(tmp_path / "empty").ok
    assert "ignore_paths" not in manifest.statement()["predicate"]["serialization"]


def test_the_order_of_a_statement_is_kept(model: Path, tmp_path: Path) -> None:
    """Another tool may sort names otherwise; the root digest depends on it."""
    manifest = Manifest.from_directory(model)
    turned = replace(manifest, digests=dict(reversed(manifest.digests.items())))
    turned.save(tmp_path / "turned.json")
    loaded = Manifest.load(tmp_path / "turned.json")
    assert loaded.root_digest == turned.root_digest != manifest.root_digest
    assert list(loaded.digests) == list(turned.digests)
    assert loaded.verify(model)


def test_ten_thousand_files_with_awkward_names(tmp_path: Path) -> None:
    letters = [chr(code) for code in (*range(1, 47), *range(48, 128), 0xA0, 0xFC, 0x202E, 0x2028, 0xFEFF, 0x1F600)]
    folder = tmp_path / "model"
    for number in range(100):
        (folder / f"{number}{letters[number]}").mkdir(parents=True)
    names = [f"{n % 100}{letters[n % 100]}/{letters[n % 131]}{n}{letters[n // 131]}" for n in range(10_000)]
    assert len(set(names)) == 10_000
    for name in names:
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, name.encode())
        os.close(descriptor)
    manifest = Manifest.from_directory(folder)
    assert set(manifest.digests) == set(names)
    manifest.save(folder / "manifest.json")
    loaded = Manifest.load(folder / "manifest.json")
    assert loaded == manifest
    assert loaded.verify(folder) == Verification(("manifest.json",), (), ())
    (folder / names[5000]).write_bytes(names[5000].encode()[:-1] + b"\0")
    assert loaded.verify(folder, ignore=["manifest.json"]) == Verification((), (), (names[5000],))


def test_a_manifest_is_a_value(model: Path) -> None:
    manifest = Manifest.from_directory(model)
    assert manifest.name == "sample"
    assert dict(manifest.digests) == hash_directory(model, "sha256")
    assert manifest == pickle.loads(pickle.dumps(manifest)) == copy.deepcopy(manifest)
    assert manifest != replace(manifest, allow_symlinks=True)
    with pytest.raises(TypeError):
        manifest.digests["a-b"] = bytes(32)  # type: ignore[index]
    assert aisec_fast.integrity.Manifest is Manifest


def test_the_name_is_the_folders_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    assert Manifest.from_directory(".").name == "sample"
    assert Manifest.from_directory("a/..").name == "sample"
    odd = os.fsencode(model.parent / "odd") + b"\xff"
    Path(os.fsdecode(odd)).mkdir()
    assert Manifest.from_directory(odd).name == "odd\N{REPLACEMENT CHARACTER}"


# --- What verify finds ------------------------------------------------------------------------------------------------


def swap(model: Path) -> None:
    (model / "a-b").rename(model / "aside")
    (model / "a/b").rename(model / "a-b")
    (model / "aside").rename(model / "a/b")


def become(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        make(model / name)

    return change


CHANGES: dict[str, tuple[Callable[[Path], object], Verification]] = {
    "nothing": (lambda model: None, Verification((), (), ())),
    "a byte": (lambda model: (model / "a-b").write_bytes(SAMPLE["a-b"][:-1] + b"x"), Verification((), (), ("a-b",))),
    "cut": (lambda model: os.truncate(model / "big.bin", 2_000_000), Verification((), (), ("big.bin",))),
    "emptied": (lambda model: os.truncate(model / "a/b", 0), Verification((), (), ("a/b",))),
    "longer": (lambda model: (model / "empty").write_bytes(b"\0"), Verification((), (), ("empty",))),
    "added": (lambda model: (model / "a/.new").touch(), Verification(("a/.new",), (), ())),
    "added with odd bytes": (
        lambda model: (model / os.fsdecode(b"\xff")).touch(),
        Verification((os.fsdecode(b"\xff"),), (), ()),
    ),
    "removed": (lambda model: (model / "a/b").unlink(), Verification((), ("a/b",), ())),
    "a folder removed": (lambda model: shutil.rmtree(model / "a"), Verification((), ("a/b", "a/b-c/d"), ())),
    "renamed": (lambda model: (model / "a-b").rename(model / "A-b"), Verification(("A-b",), ("a-b",), ())),
    "swapped": (swap, Verification((), (), ("a/b", "a-b"))),
    "a link to the same bytes": (
        become("a-b", lambda path: (path.with_name("new").write_bytes(SAMPLE["a-b"]), path.symlink_to("new"))),
        Verification(("new",), (), ("a-b",)),
    ),
    "a dangling link": (become("a-b", lambda path: path.symlink_to("nowhere")), Verification((), (), ("a-b",))),
    "an empty directory": (become("a-b", Path.mkdir), Verification((), (), ("a-b",))),
    "a directory": (
        become("a-b", lambda path: (path.mkdir(), (path / "a-b").write_bytes(SAMPLE["a-b"]))),
        Verification(("a-b/a-b",), (), ("a-b",)),
    ),
    "a FIFO": (become("a-b", lambda path: os.mkfifo(path)), Verification((), (), ("a-b",))),
    "a new FIFO": (lambda model: os.mkfifo(model / "fifo"), Verification(("fifo",), (), ())),
    "a new link": (lambda model: (model / "link").symlink_to("a"), Verification(("link",), (), ())),
    "a folder that became a link": (
        lambda model: ((model / "a").rename(model.parent / "a"), (model / "a").symlink_to("../a")),
        Verification(("a",), ("a/b", "a/b-c/d"), ()),
    ),
    "ignored": (lambda model: (model / "skip/me").write_bytes(b"new"), Verification((), (), ())),
    "ignored and gone": (lambda model: shutil.rmtree(model / "skip"), Verification((), (), ())),
    "an empty folder": (lambda model: (model / "new").mkdir(), Verification((), (), ())),
    "mode and time": (
        lambda model: ((model / "a-b").chmod(0o600), os.utime(model / "a-b", (1, 1))),
        Verification((), (), ()),
    ),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_every_change_is_found(model: Path, change: Callable[[Path], object], expected: Verification) -> None:
    manifest = Manifest.from_directory(model, ignore=["skip"])
    change(model)
    found = manifest.verify(model)
    assert found == expected
    assert found.ok == bool(found) == (expected == Verification((), (), ()))


FLIPPED = {"one": bytes(1), "folder/two": bytes(range(200)) * 700, "three": b"\xff" * 65_537}


@pytest.fixture(scope="module", params=["sha256", "blake3"])
def flippable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("flippable")
    (folder / "folder").mkdir()
    for name, data in FLIPPED.items():
        (folder / name).write_bytes(data)
    return folder, Manifest.from_directory(folder, algorithm=request.param)


@given(st.sampled_from(sorted(FLIPPED)), st.integers(0, 2**32), st.integers(0, 7))
def test_a_flipped_bit_is_always_found(flippable: tuple[Path, Manifest], name: str, position: int, bit: int) -> None:
    folder, manifest = flippable
    data = bytearray(FLIPPED[name])
    data[position % len(data)] ^= 1 << bit
    before = (folder / name).stat()
    (folder / name).write_bytes(data)
    os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # nobody trusts times
    try:
        assert manifest.verify(folder) == Verification((), (), (name,))
    finally:
        (folder / name).write_bytes(FLIPPED[name])
    assert manifest.verify(folder)


def test_the_manifest_may_lie_in_the_folder(model: Path) -> None:
    Manifest.from_directory(model, ignore=["manifest.json"]).save(model / "manifest.json")
    manifest = Manifest.load(model / "manifest.json")
    assert manifest.ignore == ("manifest.json",)
    assert manifest.verify(model)
    (model / "later.sig").touch()
    assert manifest.verify(model).added == ("later.sig",)
    assert manifest.verify(model, ignore=["later.sig", "nothing"])


def test_verify_cannot_be_told_to_look_away_from_a_listed_file(model: Path) -> None:
    manifest = Manifest.from_directory(model)
    for hidden in ("a", "a-b", "a/b"):
        with pytest.raises(ValueError, match=r"ignore covers 'a.*', which the manifest lists"):
            manifest.verify(model, ignore=[hidden])


def test_links_count_as_files_if_the_manifest_says_so(model: Path, tmp_path: Path) -> None:
    (model / "blob").write_bytes(b"weights")
    (model / "link").symlink_to("blob")
    with pytest.raises(UnsupportedFileError, match="link"):
        Manifest.from_directory(model)
    Manifest.from_directory(model, allow_symlinks=True).save(tmp_path / "manifest.json")
    manifest = Manifest.load(tmp_path / "manifest.json")
    assert manifest.allow_symlinks
    assert manifest.verify(model)
    (model / "blob").write_bytes(b"Weights")
    assert manifest.verify(model).changed == ("blob", "link")
    (model / "blob").unlink()
    assert manifest.verify(model) == Verification((), ("blob",), ("link",))


def test_a_link_that_leads_out_of_the_folder_is_refused_and_never_verified(model: Path, tmp_path: Path) -> None:
    (model / "link").write_bytes(b"weights")
    manifest = replace(Manifest.from_directory(model), allow_symlinks=True)
    assert manifest.verify(model)
    (tmp_path / "blob").write_bytes(b"weights")
    (model / "link").unlink()
    (model / "link").symlink_to("../blob")
    with pytest.raises(UnsupportedFileError, match=r"lies outside of the folder: .*link"):
        Manifest.from_directory(model, allow_symlinks=True)
    assert manifest.verify(model).changed == ("link",)


def test_what_cannot_be_read_is_no_verdict(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_directory(model)
    real = os.open

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:
        if path == "a-b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    with use_backend("numba"), pytest.raises(PermissionError, match="a-b"):  # files are then opened in Python
        manifest.verify(model)
    with pytest.raises(FileNotFoundError):
        manifest.verify(model / "nothing")
    with pytest.raises(NotADirectoryError):
        manifest.verify(model / "config.json")


def test_progress_is_passed_on(model: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = Manifest.from_directory(model, progress=lambda *call: calls.append(call), max_threads=1)
    total = sum(map(len, SAMPLE.values()))
    assert calls[-1] == (total, total)
    calls.clear()
    assert manifest.verify(model, progress=lambda *call: calls.append(call), max_threads=3)
    assert calls[-1] == (total, total)


# --- What cannot be a manifest ----------------------------------------------------------------------------------------


def test_a_name_that_is_not_utf8_is_refused(model: Path) -> None:
    (model / "folder").mkdir()
    (model / "folder" / os.fsdecode(b"\xff")).touch()
    with pytest.raises(ManifestError, match=r"name of a file is 'folder/\\udcff', expected valid Unicode"):
        Manifest.from_directory(model)
    assert Manifest.from_directory(model, ignore=["folder"]).verify(model)
    with pytest.raises(ManifestError, match=r"ignore is '\\udcff'"):
        Manifest.from_directory(model, ignore=["folder", "\udcff"])


def test_a_pattern_is_recorded_as_what_it_matched(tmp_path: Path) -> None:
    for name in ("a", "b.tmp", "x/c.tmp", "x/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    manifest = Manifest.from_directory(tmp_path, ignore=["x/d"], ignore_patterns=["*.tmp"])
    assert (sorted(manifest.digests), manifest.ignore) == (["a"], ("b.tmp", "x/c.tmp", "x/d"))
    assert manifest.verify(tmp_path)
    (tmp_path / "later.tmp").write_bytes(b"1")
    assert manifest.verify(tmp_path).added == ("later.tmp",)


def test_an_ignored_name_covers_no_longer_name() -> None:
    manifest = Manifest({"ab": bytes(32), "b/a": bytes(32)}, ignore=("a", "./a/", "b/aa"))
    assert manifest.ignore == ("a", "b/aa")


def test_an_unknown_algorithm(model: Path) -> None:
    with pytest.raises(ValueError, match='algorithm is \'md5\', expected "blake3" or "sha256"'):
        Manifest.from_directory(model, algorithm="md5")


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(statement: Any) -> None:
        for key in path[:-1]:
            statement = statement[key]
        statement[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(statement: Any) -> None:
        for key in path[:-1]:
            statement = statement[key]
        del statement[path[-1]]

    return change


RESOURCE = ("predicate", "resources", 1)
SERIALIZATION = ("predicate", "serialization")
INSIDE = "expected a path inside the folder"
MALFORMED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put("_type", value="https://in-toto.io/Statement/v0.1"), "_type is '.*v0.1', expected 'https://in-toto.io"),
    (put("predicateType", value=None), "predicateType is None, expected 'https://model_signing"),
    (drop("predicateType"), "predicateType is missing"),
    (drop("_type"), "_type is missing"),
    (put("dsseEnvelope", value={}), "is a signed bundle"),
    (put("predicate", value=[]), "predicate is a list, expected an object"),
    (drop("predicate"), "predicate is missing"),
    (drop(*SERIALIZATION), r"predicate\.serialization is missing"),
    (put(*SERIALIZATION, "method", value="shards"), r"serialization\.method is 'shards', expected 'files'"),
    (put(*SERIALIZATION, "hash_type", value="md5"), r"serialization\.hash_type is 'md5', expected"),
    (put(*SERIALIZATION, "hash_type", value=["sha256"]), r"serialization\.hash_type is a list"),
    (put(*SERIALIZATION, "hash_type", value="blake3"), r"resources\[0\]\.algorithm is 'sha256', expected 'blake3'"),
    (put(*SERIALIZATION, "allow_symlinks", value="false"), r"allow_symlinks is 'false', expected true or false"),
    (drop(*SERIALIZATION, "allow_symlinks"), "allow_symlinks is missing"),
    (put(*SERIALIZATION, "ignore_paths", value="skip"), "ignore_paths is 'skip', expected a list"),
    (put(*SERIALIZATION, "ignore_paths", value=[1]), "ignore_paths: ignore holds an int"),
    (put(*SERIALIZATION, "ignore_paths", value=["../up"]), r"ignore_paths: ignore holds '\.\./up'"),
    (
        put(*SERIALIZATION, "ignore_paths", value=["a"]),
        r"resources\[1\]\.name is 'a/b', expected a path that is not ign",
    ),
    (drop("predicate", "resources"), r"predicate\.resources is missing"),
    (put("predicate", "resources", value={}), r"predicate\.resources is a dict, expected a list"),
    (put(*RESOURCE, value="a/b"), r"resources\[1\] is 'a/b', expected an object"),
    (drop(*RESOURCE, "name"), r"resources\[1\]\.name is missing"),
    (put(*RESOURCE, "name", value=7), r"resources\[1\]\.name is 7, expected a string"),
    (
        put(*RESOURCE, "name", value=".hidden"),
        r"resources\[1\]\.name is '\.hidden', expected a name that does not come",
    ),
    (put(*RESOURCE, "name", value="/etc/passwd"), rf"resources\[1\]\.name is '/etc/passwd', {INSIDE}"),
    (put(*RESOURCE, "name", value="a/../b"), rf"resources\[1\]\.name is 'a/\.\./b', {INSIDE}"),
    (put(*RESOURCE, "name", value=".."), INSIDE),
    (put(*RESOURCE, "name", value="a/./b"), INSIDE),
    (put(*RESOURCE, "name", value="a//b"), INSIDE),
    (put(*RESOURCE, "name", value="a/"), INSIDE),
    (put(*RESOURCE, "name", value=""), INSIDE),
    (put(*RESOURCE, "name", value="a\0b"), INSIDE),
    (put(*RESOURCE, "name", value="\ud800"), r"resources\[1\]\.name is '\\ud800', expected valid Unicode"),
    (put(*RESOURCE, "algorithm", value="blake3"), r"resources\[1\]\.algorithm is 'blake3', expected 'sha256'"),
    (put(*RESOURCE, "digest", value="00" * 31), r"resources\[1\]\.digest is '0+', expected 64 hexadecimal digits"),
    (put(*RESOURCE, "digest", value="0g" * 32), r"resources\[1\]\.digest is .* expected 64 hexadecimal digits"),
    (put(*RESOURCE, "digest", value="AB" * 32), r"resources\[1\]\.digest is .* lower case"),
    (put(*RESOURCE, "digest", value=None), r"resources\[1\]\.digest is None"),
    (
        put(*RESOURCE, "digest", value="00" * 32),
        r"subject\[0\]\.digest\.sha256 is '[0-9a-f]{64}', expected .* root dig",
    ),
    (drop(*RESOURCE), r"subject\[0\]\.digest\.sha256 is"),
    (put("subject", value=[]), "subject is a list, expected a list of one object"),
    (put("subject", 0, value=3), r"subject\[0\] is 3, expected an object"),
    (drop("subject", 0, "name"), r"subject\[0\]\.name is missing"),
    (put("subject", 0, "digest", value={"sha512": "00"}), r"subject\[0\]\.digest\.sha256 is missing"),
    (put("subject", 0, "digest", "sha256", value="0"), r"subject\[0\]\.digest\.sha256 is '0', expected 64"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_a_malformed_statement(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    statement = copy.deepcopy(STATEMENTS["sha256"])
    change(statement)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(statement))
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.load(path)
    assert str(caught.value).startswith(f"'{path}': ")
    assert isinstance(caught.value, ValueError)


TEXTS: list[tuple[bytes, str]] = [
    (b"", "is no JSON in UTF-8"),
    (b"{", "is no JSON in UTF-8"),
    (b"\xff\xfe{}", "is no JSON in UTF-8"),
    (b"[" * 100_000, "is no JSON in UTF-8"),
    (b"1" * 5000, "is no JSON in UTF-8"),
    (b'{"_type": NaN}', "is no JSON in UTF-8: NaN"),
    (b'{"a": [-Infinity]}', "is no JSON in UTF-8: -Infinity"),
    (b"[]", "the statement is a list, expected an object"),
    (b"null", "the statement is None, expected an object"),
    (b'{"_type": 1, "_type": 2}', "key '_type' stands twice in one object"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_statement(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(ManifestError, match=message):
        Manifest.load(tmp_path / "bad.json")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        Manifest.load(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnsupportedFileError, match="is a FIFO"):
        Manifest.load(tmp_path / "fifo")


def test_unknown_fields_are_passed_over(model: Path, tmp_path: Path) -> None:
    statement = copy.deepcopy(STATEMENTS["sha256"])
    statement["predicate"]["model_card"] = {"later": 1}
    (tmp_path / "new.json").write_text(json.dumps(statement))
    assert Manifest.load(tmp_path / "new.json").verify(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digests": {"../a": bytes(32)}}, "name 0 is '../a', expected a path inside"),
        ({"digests": {"a": bytes(31)}}, "digest of 'a' is .*, expected 32 bytes"),
        ({"digests": {"a": "00" * 32}}, "digest of 'a' is '00"),
        ({"digests": {"a/b": bytes(32)}, "ignore": ("a",)}, "expected a path that is not ignored"),
        ({"digests": {}, "algorithm": "crc32"}, "algorithm is 'crc32'"),
        ({"digests": {}, "name": "\udcff"}, "name is '.udcff', expected valid Unicode"),
        ({"digests": None}, "digests is None, expected a mapping"),
        ({"digests": {}, "allow_symlinks": "no"}, "allow_symlinks is 'no', expected True or False"),
    ],
)
def test_a_manifest_made_by_hand_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest(**arguments)


# --- Saving -----------------------------------------------------------------------------------------------------------


def fail(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["os.fsync", "os.fdopen", "pathlib.Path.replace"])
@pytest.mark.parametrize("old", ["old", None])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, old: str | None
) -> None:
    path = tmp_path / "manifest.json"
    if old:
        path.write_text(old)
    manifest = Manifest.from_directory(model)
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(KeyboardInterrupt):
            manifest.save(path)
    assert sorted(tmp_path.iterdir()) == before
    assert (path.read_text() if path.exists() else None) == old
    manifest.save(path)
    assert Manifest.load(path) == manifest


def test_where_a_manifest_cannot_be_saved(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_directory(model)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        manifest.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the folder of .* does not exist"):
        manifest.save(tmp_path / "nothing" / "manifest.json")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="no permission"):
        manifest.save(tmp_path / "manifest.json")
    assert list(tmp_path.iterdir()) == [model]


def test_text_does_not_allow_links(model: Path) -> None:
    for call in (Manifest.from_directory, hash_directory):
        with pytest.raises(TypeError, match="allow_symlinks is a str, expected a bool"):
            call(model, allow_symlinks="no")  # type: ignore[operator]
