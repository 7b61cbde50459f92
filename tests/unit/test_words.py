"""The codec over values and arrays against the 3,151 values of the kernels' own encoders and decoders."""

from __future__ import annotations

import json
import lzma

import numpy as np
import pytest
from kvm_mmu import kernels
from kvm_mmu.cli import main
from kvm_mmu.errors import UsageError
from kvm_mmu.machine.generation import GenerationV51Fixed
from kvm_mmu.words.codec import Codec
from kvm_mmu.words.roles import decode_role

KERNELS = {"seed": "v5.0-seed"}


def blocks(path):
    """(header, rows) of each configuration of the codec vectors."""
    found = []
    with lzma.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if "config" in row:
                found.append((row, []))
            else:
                found[-1][1].append(row)
    return found


@pytest.fixture(scope="module")
def vectors(data):
    return blocks(data / "vectors" / "mmio_codec.jsonl.xz")


def codec(header):
    config = header["config"]
    return Codec(KERNELS.get(config["variant"], config["variant"]), config["family"], config["phys_bits"])


def test_all_values_one_by_one(vectors):
    count = 0
    for header, rows in vectors:
        machine = codec(header)
        assert {name: hex(machine.masks[name]) for name in header["masks"]} == header["masks"]
        for row in rows:
            count += 1
            found = machine.decode_mmio(row.get("raw", row.get("spte")))
            got = [found[k] for k in ("is_mmio", "shadow_present", "gfn", "access", "mmio_gen")]
            assert got == [
                row[k] for k in ("is_mmio", "shadow_present", "dec_gfn", "dec_access", "dec_gen")
            ], row
            if "gfn" not in row:
                continue
            gen = int(row["gen"], 16)
            assert hex(machine.make_mmio_spte(row["gfn"], row["access"], gen)) == row["spte"]
            same = machine.decode_mmio(row["spte"], gen)
            assert (same["kvm_gen"], same["fresh"]) == (row["kvm_gen"], row["check_same"]), row
    assert count == 3151


def test_all_values_as_arrays(vectors):
    for header, rows in vectors:
        machine = codec(header)
        made = [row for row in rows if "gfn" in row]
        sptes = machine.make_mmio_sptes(
            np.array([row["gfn"] for row in made], dtype=np.uint64),
            [row["access"] for row in made],
            np.array([int(row["gen"], 16) for row in made], dtype=np.uint64),
        )
        assert [hex(int(spte)) for spte in sptes] == [row["spte"] for row in made]
        columns = machine.decode_mmio_sptes(sptes)
        assert columns.gfn.tolist() == [row["dec_gfn"] for row in made]
        assert columns.mmio_gen.tolist() == [row["dec_gen"] for row in made]
        assert columns.is_mmio.tolist() == [bool(row["is_mmio"]) for row in made]
        assert columns.shadow_present.dtype == np.bool_


@pytest.mark.parametrize(("kernel", "family"), [("v5.0", "npt"), ("v5.2", "ept_ad"), ("v6.12", "npt")])
def test_a_gfn_above_the_physical_width_is_refused(kernel, family):
    for phys_bits in (36, 40, 52):
        machine = Codec(kernel, family, phys_bits)
        if not machine.makes_mmio_sptes:
            continue
        last = (1 << phys_bits - 12) - 1
        machine.make_mmio_spte(last, 6, 4)
        for gfn in (last + 1, 0xE000000000000, (1 << 64) - 1):
            said = f"gfn {gfn:#x}: expected 0 to {last:#x}, the frames of {phys_bits} physical bits"
            with pytest.raises(UsageError, match=said):
                machine.make_mmio_spte(gfn, 6, 4)
            with pytest.raises(UsageError, match=said):
                machine.make_mmio_sptes(np.array([0, gfn], dtype=np.uint64), [6, 6], [4, 4])
        with pytest.raises(UsageError, match="access 8: expected 0 to 7"):
            machine.make_mmio_spte(0, 8, 4)
        with pytest.raises(UsageError, match="gen"):
            machine.make_mmio_spte(0, 6, 1 << 64)
        nothing = np.array([], dtype=np.uint64)
        assert machine.make_mmio_sptes(nothing, nothing, nothing).size == 0


def test_an_unknown_kernel_is_told_every_known_one(capsys):
    known = ", ".join(kernels).replace("v5.2,", "v5.1, v5.2,", 1)
    assert main(["decode", "spte", "1", "--kernel", "v5.11"]) == 2
    assert (
        f"kernel 'v5.11': expected one of {known}, or a release of their branches\n"
        in capsys.readouterr().err
    )
    for kernel in known.split(", "):
        assert main(["decode", "spte", "1", "--kernel", kernel]) == 0


def test_encode_names_the_argument_that_is_too_large(capsys):
    assert main(["encode", "mmio", "--gfn", "0xe000000000000", "--gen", "4", "--kernel", "v5.0"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        "arguments: gfn 0xe000000000000: expected 0 to 0x3ffffffff, the frames of 46 physical bits"
        in said.err
    )


def test_the_known_bug_of_v5_1_and_its_repair():
    broken = Codec("v5.2", "npt", 40)
    fixed = Codec("v5.2", "npt", 40, generation=GenerationV51Fixed())
    for gen, hits in ((1022, True), (1024, False), (0x7FFFE, False)):
        spte = broken.make_mmio_spte(0xE0000, 6, gen)
        found = broken.decode_mmio(spte, gen)
        assert found["mmio_gen"] == gen & 0x3FF
        assert bool(found["fresh"]) is hits
        assert fixed.decode_mmio(fixed.make_mmio_spte(0xE0000, 6, gen), gen)["fresh"]


@pytest.mark.parametrize(
    ("kernel", "gen", "spte"),
    [("v5.0", 0xFFF6A, 0x7FF800F8E0000DAF), ("v5.2", 2, 0x402800F8E0000017), ("v5.2", 0, 0x400800F8E0000007)],
)
def test_values_seen_in_traces(kernel, gen, spte):
    assert Codec(kernel, "npt", 40).make_mmio_spte(0xE0000, 6, gen) == spte


def test_every_bit_of_an_spte_is_named_once():
    for kernel, family, raw in (
        ("v5.0", "npt", 0x200000C67),
        ("v5.0", "ept_ad", 0x200000F77),
        ("v5.0", "npt", 0x8000000200000CE7),
        ("v5.4", "npt", 0x200000C67),
        ("v5.4", "npt", 0x3800F8E0000017),
        ("v6.1", "npt", 0x8000000200000EE7),
        ("v6.1", "npt", 0x80000D0000045),
        ("v6.12", "ept_ad", 0x600000200000B77),
    ):
        found = Codec(kernel, family).decode_spte(raw)
        named = 0
        for high, low, _, value, _ in found["bits"]:
            mask = ((1 << (high - low + 1)) - 1) << low
            assert not named & mask
            named |= mask
            assert raw >> low & ((1 << (high - low + 1)) - 1) == value
        assert raw & ~named == 0


def test_roles_of_both_kernels():
    old, new = decode_role(0x3714, "v5.0"), decode_role("0x3791", "v5.2")
    assert (old["level"], old["cr4_pae"], old["access"], old["nxe"], old["cr0_wp"]) == (4, 1, 7, 1, 1)
    assert (new["level"], new["gpte_is_8_bytes"], new["direct"]) == (1, 1, 1)
    with pytest.raises(UsageError, match="32 bits"):
        decode_role(1 << 32, "v5.0")


@pytest.mark.parametrize(
    "bad", [np.array([1.5]), np.array([-1]), np.zeros((2, 2), np.uint64), np.array(["a"])]
)
def test_arrays_of_the_wrong_kind_are_refused(bad):
    with pytest.raises(UsageError, match="sptes"):
        Codec("v5.0").decode_mmio_sptes(bad)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("v9", "npt", 46), "expected one of"),
        (("v5.0", "mips", 46), "family"),
        (("v5.0", "npt", 35), "phys_bits"),
        (("v5.0", "npt", 300), "phys_bits"),
    ],
)
def test_unknown_hosts_are_refused(arguments, word):
    with pytest.raises(UsageError, match=word):
        Codec(*arguments)
