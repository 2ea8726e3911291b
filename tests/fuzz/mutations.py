"""Changes to a JSON text that leave it one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**64,
    10**400,
    1.5,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "/",
    "..",
    "a/b",
]
ODD += ["\ud800", "\0", "\x1b[2J", "x" * 300, [], {}, [[]], {"": None}]


def mutate_json(data: bytes, rng: random.Random, mutate_bytes: Callable[[bytes], bytes]) -> bytes:
    """Move, double, drop or change one value; ValueError or RecursionError if ``data`` is no JSON."""
    whole = [json.loads(data)]
    places: list[tuple[Any, Any]] = [(whole, 0)]
    for holder, key in places:  # grows while it is walked
        value = holder[key]
        inside = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(value, key) for key in inside]
    holder, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0 and len(places) > 1:
        holder, key = rng.choice(places[1:])
        del holder[key]
    elif action == 1:
        other, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif action == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif isinstance(holder[key], str) and action > 2:
        holder[key] = mutate_bytes(holder[key].encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(whole[0]).encode()
