"""The scenario language: reading, the dump rule, the first difference as a person sees it."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from kvm_mmu.errors import ScenarioError, TraceError, UsageError
from kvm_mmu.scenario.language import has_state, make_engine, read_scenario
from kvm_mmu.scenario.verify import first_difference, plain
from kvm_mmu.trace.text.host import facts_from
from kvm_mmu.trace.text.markers import _object

HEADER = '{"scenario":"s","format":1,"variant":"seed","config":{"family":"npt"},"dump":"sparse"}'


def test_header_and_operations():
    scenario = read_scenario([HEADER, "", '{"i":0,"op":{"op":"dump"},"ret":0,"other":1}'])
    assert (scenario.name, scenario.kernel, scenario.dump) == ("s", "v5.0-seed", "sparse")
    assert scenario.ops == [{"op": "dump"}]
    assert scenario.lines == [3]


def test_a_file_without_header_has_defaults_and_no_kernel():
    scenario = read_scenario(['{"op":{"op":"dump"}}'])
    assert scenario.kernel is None
    with pytest.raises(UsageError, match="no kernel"):
        make_engine(scenario)


def test_dump_rule():
    assert has_state("all", 3, False, {"op": "access"})
    assert not has_state("sparse", 3, False, {"op": "access"})
    assert has_state("sparse", 99, False, {"op": "access"})
    assert has_state("sparse", 3, True, {"op": "access"})
    assert has_state("sparse", 3, False, {"op": "dump"})


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["{"], "<lines>:1: not a JSON object"),
        ([HEADER, "[1]"], "<lines>:2: expected a JSON object"),
        ([HEADER, '{"op":"access"}'], "<lines>:2: expected an operation"),
        (['{"format":7}'], "format 7, expected 1"),
        (['{"config":{"colour":1}}'], "config key 'colour'"),
        (['{"config":{"vcpus":-1}}'], "vcpus=-1"),
        (['{"config":[]}'], "config is not an object"),
        (['{"dump":"some"}'], "dump 'some'"),
        (['{"plans":3}'], "plans is not"),
    ],
)
def test_errors_name_line_and_expectation(lines, word):
    with pytest.raises(ScenarioError, match=word.replace("[", r"\[")):
        read_scenario(lines)


def test_a_cut_archive_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "cut.jsonl.xz"
    whole = lzma.compress((HEADER + "\n" + '{"op":{"op":"dump"}}\n' * 5000).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScenarioError, match=r"cut\.jsonl\.xz:\d+: the compressed file ends in the middle"):
        read_scenario(path)


def test_a_missing_file_is_named():
    with pytest.raises(ScenarioError, match=r"nowhere\.jsonl: No such file"):
        read_scenario("nowhere.jsonl")


@pytest.mark.parametrize(
    ("want", "got", "expected"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, None),
        ({"a": [1, 2]}, {"a": [1, 3]}, ("a[1]", "2", "3")),
        ({"a": [1]}, {"a": [1, 2]}, ("a[1]", "nothing", "2")),
        ({"a": 1}, {}, ("a", "1", "nothing")),
        ({}, {"b": None}, ("b", "nothing", "None")),
        ({"a": None}, {"a": 0}, ("a", "None", "0")),
        ({"a": {"b": ["0x10"]}}, {"a": {"b": [16]}}, None),
    ],
)
def test_first_difference(want, got, expected):
    assert first_difference(plain(want), plain(got)) == expected


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (['{"scenario":"a","scenario":"b","format":1}'], "<lines>:1: the key 'scenario'"),
        ([HEADER, '{"op":{"op":"dump"},"op":{"op":"smm"}}'], "<lines>:2: the key 'op'"),
        ([HEADER, '{"op":{"op":"access","gpa":1,"gpa":2}}'], "<lines>:2: the key 'gpa'"),
        (
            [HEADER, '{"op":{"op":"x","' + "k" * 200 + '":1,"' + "k" * 200 + '":2}}'],
            "<lines>:2: the key 'kkk",
        ),
    ],
)
def test_a_key_stands_once(lines: list[str], key: str):
    with pytest.raises(ScenarioError) as caught:
        read_scenario(lines)
    said = str(caught.value)
    assert said.startswith(key) and said.endswith("stands twice in one object: expected it once")
    assert len(said) < 200


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, lzma.compress])
def test_bytes_that_are_not_utf8_are_refused(pack: Callable[[bytes], bytes], tmp_path: Path):
    ending = {gzip.compress: ".gz", lzma.compress: ".xz"}.get(pack, "")
    path = tmp_path / f"s.jsonl{ending}"
    good = f'{HEADER}\n\n{{"op":{{"op":"dump"}},"note":"ä"}}\n'.encode()
    path.write_bytes(pack(good))
    assert len(read_scenario(path).ops) == 1
    path.write_bytes(pack(good.replace("ä".encode(), b"\xe4")))
    with pytest.raises(ScenarioError, match=r":3: not UTF-8: expected a JSON object"):
        read_scenario(path)


def test_keys_of_host_facts_and_markers_stand_once():
    with pytest.raises(TraceError, match=r"--host: the key 'kernel' stands twice"):
        facts_from('{"kernel":"v5.0","kernel":"v5.2"}')
    with pytest.raises(TraceError, match=r"here: operation marker: the key 'op' stands twice"):
        _object('{"i":1,"op":"enter","op":"load"}', "here")
