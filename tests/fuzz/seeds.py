"""Where the fuzzer starts: well-formed inputs, and words that it would take long to find."""

from __future__ import annotations

import json

from aisec_fast.integrity import Manifest

_DIGEST = "a0" * 32
_ROW = {
    "family": "noise",
    "operation": "add_gaussian",
    "shape": [8, 4096],
    "dtype": "float32",
    "backend": "native",
    "instruction_set": "avx2",
    "device": "cpu",
    "threads": 2,
    "ns": 1.5,
    "quartiles": [1.25, 1e3],
    "busy": False,
    "private_safe": True,
}
_RESULTS = {
    "format": 1,
    "version": "0.1.0",
    "commit": None,
    "date": "2026-11-25",
    "machine": {"model": "m"},
    "rows": [_ROW, {**_ROW, "instruction_set": None, "shape": [], "ns": 3, "busy": True}],
}
_MANIFESTS = (
    Manifest({"a/b": bytes(32), "a-b": bytes(range(32))}, "sha256", "model", ("logs", ".git"), allow_symlinks=True),
    Manifest({"grüße": bytes(32)}, "blake3"),
    Manifest({}),
)

JSON = ("manifest", "results")  # parsers whose inputs are JSON
SEEDS = {
    "checksum_file": [
        f"{_DIGEST}  name\n{_DIGEST.upper()} *binary\r\n\n# comment\n".encode(),
        f"\\{_DIGEST}  a\\\\b\\nc\\rd\n \t{_DIGEST}\t  blanks \n".encode(),
        f"SHA256 (a(b) = c) = {_DIGEST}\n\\BLAKE3 (a\\\\) = {_DIGEST}\nMD5 (a) = 00\nSHA256(a)= {_DIGEST}".encode(),
        f"{_DIGEST}  name\0BLAKE3 (a\nb) = {_DIGEST}\0".encode(),
        f"{_DIGEST}  ".encode() + b"\xff\xfe\x80\n" + _DIGEST[:32].encode() + b"  md5\n",
    ],
    "manifest": [json.dumps(manifest.statement()).encode() for manifest in _MANIFESTS],
    "results": [json.dumps(_RESULTS).encode(), json.dumps({**_RESULTS, "rows": []}).encode()],
    "arguments": [b"256/60000", b"0.01", b"1e-3", b"4", b"inf"],
    "names": ["a\n\x1b[2J\\ \u202e\x85ü\U000e0001".encode(), b"\xff\xc2\x9b"],
}

_JSON = ["null", "true", "false", "NaN", "Infinity", "1e308", "1e-308", "5e-324", "1e999", "9" * 400, "9" * 5000]
_JSON += ["[]", "{}", '""', "[[[[", '"\\ud800"', '"\\udcff"', '"\\u0000"', '"\\u001b[2J"']
_KEYS = [
    "_type",
    "subject",
    "dsseEnvelope",
    "ignore_paths",
    "resources",
    "name",
    "method",
    "hash_type",
    "allow_symlinks",
    "digest",
    "sha256",
    "blake3",
]
WORDS = {
    "checksum_file": ["SHA256 (", "BLAKE3 (", ") = ", "\\\\", "\\n", "\\r", "  ", " *", "\0", "\r\n", _DIGEST],
    "manifest": [*_JSON, *(f'"{key}"' for key in _KEYS), "/../", "/./", "//", "a/a/"],
    "results": [*_JSON, *(f'"{key}"' for key in {**_ROW, **_RESULTS})],
    "arguments": ["1/", "e9", "_", "inf", "nan", "0x", "9" * 400, "٣", "²"],
    "names": ["\x1b", "\x9b", "\u202e", "\\x1b", "\\u009b", "\ufeff", "\U000e0001"],
}


def quoted(word: str) -> str:
    """A word in libFuzzer's dictionary format."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02X}" for byte in word.encode("utf-8")
    )
