"""SipHash and HMAC of the reference against published vectors; tests/test_records.py holds the backends to them too."""

from __future__ import annotations

import pytest

from aisec_fast._reference import records as reference

SIP_KEY = bytes(range(16))
# Messages 00, 00 01, ...: the vectors that the authors published with their code, by length; 15 is the paper's (appendix A).
SIPHASH_64 = {
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    2: "5a4fa9d909806c0d",
    3: "2d7efbd796666785",
    7: "37d1018bf50002ab",
    8: "6224939a79f5f593",
    15: "e545be4961ca29a1",
}
SIPHASH_128 = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    2: "8177228da4a45dc7fca38bdef60affe4",
    3: "9c70b60c5267a94e5f33b6b02985ed51",
}
VECTORS = [
    *((size, 8, tag) for size, tag in SIPHASH_64.items()),
    *((size, 16, tag) for size, tag in SIPHASH_128.items()),
]

# RFC 4231, section 4: key, data, HMAC-SHA-256. Test case 5 is truncated to 128 bits.
RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (b"\x0c" * 20, b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        (
            b"This is a test using a larger than block-size key and a larger than block-size data. "
            b"The key needs to be hashed before being used by the HMAC algorithm."
        ),
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


@pytest.mark.parametrize(("size", "columns", "tag"), VECTORS)
def test_siphash_vectors(size: int, columns: int, tag: str) -> None:
    assert reference.siphash24(SIP_KEY, bytes(range(size)), columns).hex() == tag


@pytest.mark.parametrize(("key", "message", "tag"), RFC_4231)
def test_rfc_4231(key: bytes, message: bytes, tag: str) -> None:
    assert reference.hmac_sha256(key, message).hex().startswith(tag)
