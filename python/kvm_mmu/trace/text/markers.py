"""The operations a recorder wrote into its trace with `trace_marker`: text to dict.

Owns: the two forms, `OP n "op":"name",...` and `QUIET k as a` of the 5.x recorder and one JSON object of the
6.x recorder, and the reading of their numbers. A marker of another program is no operation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvm_mmu.errors import TraceError
from kvm_mmu.machine import json_object
from kvm_mmu.machine.numbers import shown

Operation = dict[str, object]
_OP = re.compile(r"OP (\d{1,15}) (\"op\":.*)$")
_QUIET = re.compile(r"QUIET (\d{1,9}) as (\d)$")


def parse_marker(body: str, where: str) -> Operation | None:
    """The operation a marker holds, None when it is not one of a recorder.

    Raises:
        TraceError: it begins like an operation and cannot be read, for instance because the line was cut.
    """
    found = _OP.match(body)
    if found is not None:
        return {**_object("{" + found[2] + "}", where), "i": int(found[1])}
    quiet = _QUIET.match(body)
    if quiet is not None:
        return {"op": "quiet", "n": int(quiet[1]), "as": int(quiet[2])}
    if body.startswith('{"i":'):
        return _object(body, where)
    return None


def number(op: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    """A number of an operation, an integer or hexadecimal text.

    Raises:
        TraceError: missing, negative, not a number, or above 64 bits.
    """
    value = op.get(key, default)
    if value is None:
        raise TraceError(
            f"{where}: operation {shown(op.get('op'))}: no field {shown(key)}: markers that were shortened need "
            "their full text: give the recorder's ops.jsonl (--ops)"
        )
    if isinstance(value, str):
        try:
            value = int(value, 16)
        except ValueError:
            value = None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise TraceError(
            f"{where}: operation {shown(op.get('op'))}: field {shown(key)}: expected a number, got {shown(op.get(key))}"
        )
    return value


def _object(text: str, where: str) -> Operation:
    try:
        value = json_object.loads(text)
    except json_object.RepeatedKeyError as err:
        raise TraceError(f"{where}: operation marker: {err}") from err
    except (ValueError, RecursionError) as err:  # also a number of more digits than Python reads
        raise TraceError(f"{where}: operation marker is not JSON (was the line cut?): {text[:80]!r}") from err
    if not isinstance(value, dict):
        raise TraceError(f"{where}: operation marker is not an object: {text[:80]!r}")
    return value
