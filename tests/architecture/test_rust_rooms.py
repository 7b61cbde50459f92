"""Who may know whom in the core: words, then nouns, then verbs; rooms one way; what the core must not know at all.

Read from the text of src/: comments, strings and `#[cfg(test)]` modules are taken away, then the paths
`crate::...` and `super::...` are resolved. Every file of src/mmu stands on the map below; a file without a
room is a finding. Each rule is also tried on a small tree that breaks it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# The floors of src/mmu, lowest first. A file may name its own floor and those below it.
FLOORS: list[tuple[str, str]] = [
    (
        "words",
        "addr level access role guest_mode guest_permission profile spte generation work error plan plan_text config"
        " views mutants",
    ),
    (
        "nouns",
        "shadow_page page_arena page_hash active_pages mmio_pages pte_list slot_array slots vcpu_mmu tlb"
        " shared shared_array"
        " indirect_page host_memory guest_memory invalid_list last_path invalidation runs slice lock_polls nx_list"
        " spte_table stats events debt state root_list tdp_walk told memory backing debts holders operations promises",
    ),
    (
        "verbs",
        "walk page_count mapping rmap nx_marks unmap_hva guest_walk spte_write write_track unsync link zap reclaim sync"
        " get_page roots page_fault steps prefetch account guest_page guest_roots root_cache write_flood invlpg"
        " gpte_prefetch leaves_gone requested_leaf guest_fault guest_fetch guest_access"
        " fast_page_fault quick_map usual_run mmio_fault dirty_log notifier zap_plan slot_walk hardware_walk head_walk"
        " install_slot zap_batch direct_map direct_page_fault nx_recovery prefault"
        " tell iter drive tdp_roots change map zap_roots age protect split collapse recovery tables dirty_log_run"
        " driver",
    ),
    (
        "watchers",
        "audit judge judge_guest judge_pages canonical fingerprint left_over numbers snapshot stepped_dump saved"
        " restored",
    ),
    ("facade", "mod"),
]
# The rooms of src/mmu, lowest first; those of one row do not know each other. By `use` and by calls of methods. A noun
# of a VM holds nouns of both page tables (pages, lists, roots), so `vm` may name them; the floors keep it from naming
# verbs. `pages` is what tables of either kind have in common, `tables` the door to both.
ROOMS: list[tuple[str, ...]] = [
    ("words",),
    ("ghost",),
    ("vm",),
    ("pages",),
    ("shadow", "tdp"),
    ("tables",),
    ("fault", "range", "zap"),
    ("driver",),
    ("watch",),
]
HEIGHT = {name: height for height, names in enumerate(ROOMS) for name in names}
FLOOR = {name: number for number, (_, names) in enumerate(FLOORS) for name in names.split()}

# What must not be named in the core: the border, the outside world, anything that differs between two runs.
OUTSIDE = re.compile(
    r"\b(pyo3|numpy)\b|\bstd::(fs|io|net|env|time|process|thread)\b|\b(rand|rand_core|rand_pcg|getrandom)::"
    r"|\b(SystemTime|Instant|RandomState|DefaultHasher)\b|\bstd::collections::Hash(Map|Set)\b"
)
PRINTS = re.compile(r"\b(println|eprintln|print|eprint|dbg)!")
# The generation policy is Python: here a generation is stored, encoded and compared, never stepped or judged.
SLOTS_GEN = r"(?<!valid_)(?<!valid\.)\b(?:\w*\.)?(?:slots_gen|generation|mmio_gen|gen_|slots_generation)\b"
STEPS = re.compile(
    rf"{SLOTS_GEN}\s*(?:\+=|-=|\+|-(?!>))|{SLOTS_GEN}\s*\.\s*(?:wrapping|checked|saturating|overflowing)_(?:add|sub)"
    r"|\b(?:is_wrap|wrapped|wraparound|next_generation|initial_generation|begin_generation)\b"
    r"|\b0x[fF]_?[fF]{4}\b\s*\)?\s*==\s*0|\b0x7_?[fF]{4}\b\s*\)?\s*==\s*0"
)


def code(path: Path) -> list[str]:
    """The lines of a file without comments, string contents and test modules; line numbers stay."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(
        r'r#"(?:.|\n)*?"#|"(?:\\(?:.|\n)|[^"\\])*"', lambda m: '"' + "\n" * m[0].count("\n") + '"', text
    )
    lines = [line.split("//")[0] for line in text.splitlines()]
    for number, line in enumerate(lines):
        if re.match(r"#\[cfg\((?:all\()?test", line.strip()) and re.match(
            r"(?:pub(?:\(\w+\))? )?mod \w+ \{", (lines[number + 1 : number + 2] or [""])[0].strip()
        ):
            depth = 0
            for later in range(number, len(lines)):
                depth += lines[later].count("{") - lines[later].count("}")
                lines[later] = ""
                if depth == 0 and later > number + 1:
                    break
    return lines


def core_files(src: Path) -> list[Path]:
    return sorted(
        path for path in (src / "mmu").rglob("*.rs") if path.stem != "tests" and "tests" not in path.parts
    )


def room(src: Path, path: Path) -> str:
    """The name of a file's subject: words/spte/layout.rs is `spte`, the door of a room is `mod`."""
    parts = path.relative_to(src / "mmu").parts
    return parts[1 if len(parts) > 1 and parts[0] in HEIGHT else 0].removesuffix(".rs")


def named(src: Path, path: Path) -> list[tuple[int, str]]:
    """The rooms of src/mmu that a file names, with line numbers."""
    inside = path.relative_to(src / "mmu").with_suffix("").parts
    depth = len(inside) - (inside[-1] == "mod")  # how many `super::` lead to src/mmu itself
    depth -= inside[0] in HEIGHT  # or to the room, whose files are subjects
    text = "\n".join(code(path))
    found: list[tuple[int, str]] = []
    text = re.sub(rf"crate::mmu::(?:{'|'.join(HEIGHT)})::", "crate::mmu::", text)
    roots = [r"crate::mmu::"] + ([r"(?<![\w:])" + "super::" * depth + r"(?!super)"] if depth else [])
    for start in roots:
        for match in re.finditer(start + r"(?:(\w+)|\{)", text):
            line = text.count("\n", 0, match.start()) + 1
            if match[1]:
                found.append((line, match[1]))
                continue
            level, word, position = 1, "", match.end()
            fresh = True  # at the beginning of an item of the outermost braces
            while position < len(text) and level:
                char = text[position]
                if level == 1 and fresh and (char.isalnum() or char == "_"):
                    word += char
                else:
                    if word:
                        found.append((line, word))
                        word, fresh = "", False
                    level += (char == "{") - (char == "}")
                    if level == 1 and char == ",":
                        fresh = True
                position += 1
            if word:
                found.append((line, word))
    return [(line, name) for line, name in found if name.islower() and name != "self"]


def upward(src: Path) -> list[str]:
    """A file that names a floor above its own, or stands on none."""
    found = []
    for path in core_files(src):
        own = room(src, path)
        where = path.relative_to(src)
        if own not in FLOOR:
            found.append(f"{where}: no room on the map for `{own}`")
            continue
        for line, name in named(src, path):
            if FLOOR.get(name, -1) > FLOOR[own]:
                found.append(
                    f"{where}:{line}: {FLOORS[FLOOR[own]][0]} name `{name}` of the {FLOORS[FLOOR[name]][0]}"
                )
    return found


METHOD = re.compile(r"^    (?:pub(?:\([^)]*\))? )?(?:const )?fn (\w+)", re.MULTILINE)
OF_STATE = re.compile(r"^impl MmuState \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)


def rooms_one_way(src: Path) -> list[str]:
    """A room names and calls only what lies below it; a method of the state belongs to the room of its file."""
    files = [path for path in core_files(src) if room_of(src, path) in HEIGHT]
    texts = {path: "\n".join(code(path)) for path in files}
    homes: dict[str, set[Path]] = {}
    for path, text in texts.items():
        for body in OF_STATE.findall(text):
            for method in METHOD.findall(body):
                homes.setdefault(method, set()).add(path)
    found = []
    for path, text in texts.items():
        own = room_of(src, path)
        where = path.relative_to(src)
        for match in re.finditer(rf"crate::mmu::({'|'.join(HEIGHT)})::(\w+)", text):
            is_noun_held = own == "vm" and match[1] in ("pages", "shadow", "tdp") and FLOOR.get(match[2]) == 1
            if not_below(match[1], own) and not is_noun_held:
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{where}:{line}: {own} names {match[1]}::{match[2]}")
        for match in re.finditer(r"\b(?:self|state)\s*\.\s*(\w+)\(", text):
            home = homes.get(match[1], set())
            other = room_of(src, next(iter(home))) if len(home) == 1 else own
            if not_below(other, own):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{where}:{line}: {own} calls {match[1]} of {other}")
    return found


def room_of(src: Path, path: Path) -> str:
    """The room of a file; a file beside the rooms is one of its own."""
    return path.relative_to(src / "mmu").parts[0].removesuffix(".rs")


def not_below(other: str, own: str) -> bool:
    return other != own and HEIGHT[other] >= HEIGHT[own]


def outside(src: Path) -> list[str]:
    """The core knows no Python, no files, no clock, no randomness and no order that differs between runs."""
    return lines_with(src, core_files(src), OUTSIDE, PRINTS)


def generation_steps(src: Path) -> list[str]:
    """No step, first value or wrap test of a memslot generation in the core."""
    return lines_with(src, core_files(src), STEPS)


def reader_knows_words(src: Path) -> list[str]:
    """src/ftrace may name the words of src/mmu and nothing else of it, and no Python."""
    found = []
    for path in sorted((src / "ftrace").rglob("*.rs")):
        for number, line in enumerate(code(path), 1):
            for name in re.findall(r"crate::mmu::\{?\s*(\w+)", line):
                if FLOOR.get(name, len(FLOORS)) > 0:
                    found.append(f"{path.relative_to(src)}:{number}: names {name}")
            if re.search(r"\bpyo3\b|crate::py\b", line):
                found.append(f"{path.relative_to(src)}:{number}: knows Python")
    return found


def core_knows_no_reader(src: Path) -> list[str]:
    """src/mmu names neither src/ftrace nor src/replay nor src/py."""
    return lines_with(src, core_files(src), re.compile(r"crate::(ftrace|replay|py)\b"))


def replay_knows_doors(src: Path) -> list[str]:
    """src/replay knows the reader and the facade: no room of src/mmu by name, and no Python; nothing below knows it."""
    own = sorted((src / "replay").rglob("*.rs"))
    below = sorted([*(src / "ftrace").rglob("*.rs"), *(src / "kernels").rglob("*.rs")])
    inside = re.compile(r"crate::mmu::(?:\{[^}]*\b)?[a-z]\w*::|\bpyo3\b|crate::py\b")
    return lines_with(src, own, inside) + lines_with(src, below, re.compile(r"crate::replay\b"))


def lines_with(src: Path, paths: list[Path], *patterns: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(src)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(code(path), 1)
        if any(pattern.search(line) for pattern in patterns)
    ]


def one_place(src: Path, what: str, pattern: re.Pattern[str], wanted: str) -> list[str]:
    """Exactly one file has the pattern, and it is the wanted one."""
    places = sorted(
        {
            str(path.relative_to(src / "mmu"))
            for path in core_files(src)
            if pattern.search("\n".join(code(path)))
        }
    )
    return [] if places == [wanted] else [f"{what}: {', '.join(places) or 'nowhere'}, and not only {wanted}"]


def one_writer(src: Path) -> list[str]:
    """SPTE words are written where the arena gives a table out for writing: in one file."""
    return one_place(src, "writes SPTE words", re.compile(r"\.\s*table_mut\("), "pages/spte_write.rs")


def one_freer(src: Path) -> list[str]:
    """A table goes back to the arena in one file; shadow pages come there out of a list that was flushed."""
    return one_place(src, "frees tables", re.compile(r"\barena\s*\.\s*release\("), "pages/page_count.rs")


RULES = [
    upward,
    rooms_one_way,
    outside,
    generation_steps,
    reader_knows_words,
    core_knows_no_reader,
    replay_knows_doors,
    one_writer,
    one_freer,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_core_keeps(rule, root: Path) -> None:  # type: ignore[no-untyped-def]
    assert rule(root / "src") == []


BROKEN = [
    (upward, "mmu/words/addr.rs", "use crate::mmu::tlb::Tlb;\n"),
    (upward, "mmu/words/spte/make.rs", "use super::super::slots::Slot;\n"),
    (upward, "mmu/vm/slots.rs", "use super::zap;\n"),
    (upward, "mmu/vm/slots.rs", "use super::{addr::Gfn, page_fault::{self, Fault}};\n"),
    (upward, "mmu/shadow/zap.rs", "fn f() { crate::mmu::audit::audit(); }\n"),
    (upward, "mmu/attic.rs", "fn f() {}\n"),
    (rooms_one_way, "mmu/words/addr.rs", "use crate::mmu::vm::slots::Slot;\n"),
    (rooms_one_way, "mmu/shadow/zap.rs", "use crate::mmu::zap::zap_plan;\n"),
    (rooms_one_way, "mmu/fault/page_fault.rs", "use crate::mmu::range::dirty_log;\n"),
    (outside, "mmu/words/addr.rs", "use pyo3::prelude::*;\n"),
    (outside, "mmu/words/addr.rs", "fn f() { let _ = std::time::Instant::now(); }\n"),
    (outside, "mmu/words/addr.rs", "use std::collections::HashMap;\n"),
    (outside, "mmu/words/addr.rs", 'fn f() { println!("x"); }\n'),
    (generation_steps, "mmu/vm/slots.rs", "fn f(s: &mut S) { s.generation += 2; }\n"),
    (generation_steps, "mmu/vm/slots.rs", "fn f(g: u64) -> u64 { self.generation.wrapping_add(4) }\n"),
    (generation_steps, "mmu/vm/slots.rs", "fn f(generation: u64) -> bool { (generation & 0x7_ffff) == 0 }\n"),
    (generation_steps, "mmu/vm/slots.rs", "fn is_wrap(g: u64) -> bool { g == 0 }\n"),
    (reader_knows_words, "ftrace/parse.rs", "use crate::mmu::zap::Prepared;\n"),
    (reader_knows_words, "ftrace/parse.rs", "use pyo3::Python;\n"),
    (core_knows_no_reader, "mmu/vm/slots.rs", "use crate::ftrace::Event;\n"),
    (core_knows_no_reader, "mmu/vm/slots.rs", "use crate::replay::Lane;\n"),
    (replay_knows_doors, "replay/lane.rs", "use crate::mmu::vm::slots::Slot;\n"),
    (replay_knows_doors, "replay/lane.rs", "use crate::mmu::{shadow::rmap, Mmu};\n"),
    (replay_knows_doors, "replay/lane.rs", "use pyo3::Python;\n"),
    (replay_knows_doors, "ftrace/parse.rs", "use crate::replay::Lane;\n"),
    (one_writer, "mmu/shadow/zap.rs", "fn f(&mut self) { self.arena.table_mut(page).set(0, 0); }\n"),
    (one_freer, "mmu/tdp/zap_roots.rs", "fn f(&mut self) { self.arena.release(page); }\n"),
    (rooms_one_way, "mmu/tdp/zap_roots.rs", "use crate::mmu::shadow::rmap::Rmap;\n"),
    (rooms_one_way, "mmu/tdp/zap_roots.rs", "use crate::mmu::tables::Tables;\n"),
    (rooms_one_way, "mmu/pages/walk.rs", "use crate::mmu::shadow::page_hash::PageHash;\n"),
    (rooms_one_way, "mmu/shadow/zap.rs", "use crate::mmu::tdp::tdp_walk::TdpWalk;\n"),
    (rooms_one_way, "mmu/vm/state.rs", "use crate::mmu::tdp::change::Lock;\n"),
    (one_freer, "mmu/shadow/reclaim.rs", "fn f(&mut self) { self.arena.release(page); }\n"),
]
ALLOWED = [
    (
        "mmu/shadow/zap.rs",
        "//! See crate::mmu::audit.\nuse super::{addr::Gfn, rmap};\nuse crate::mmu::link::Link;\n",
    ),
    ("mmu/shadow/rmap.rs", "#[cfg(test)]\nmod tests {\n    use crate::mmu::zap;\n}\n"),
    ("mmu/zap/zap_plan.rs", "fn f(s: &mut S) { s.mmu_valid_gen = s.mmu_valid_gen.wrapping_add(1); }\n"),
    ("mmu/vm/slots.rs", "fn f(&self, generation: u64) -> bool { self.generation == generation }\n"),
    ("ftrace/parse.rs", "use crate::mmu::role::Role;\n"),
    ("replay/lane.rs", "use crate::mmu::{self, Mmu};\nuse crate::mmu::Event;\n"),
]


def tree(tmp_path: Path, file: str, text: str) -> Path:
    path = tmp_path / "src" / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return tmp_path / "src"


@pytest.mark.parametrize(("rule", "file", "text"), BROKEN)
def test_a_break_is_found(rule, file: str, text: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert rule(tree(tmp_path, file, text)) != []


def test_a_call_upward_is_found(tmp_path: Path) -> None:
    src = tree(tmp_path, "mmu/range/notifier.rs", "fn f(&mut self) { self.handle(); self.write(); }\n")
    for file, method in (("mmu/fault/page_fault.rs", "handle"), ("mmu/pages/spte_write.rs", "write")):
        path = src / file
        path.parent.mkdir(parents=True)
        path.write_text(f"impl MmuState {{\n    pub fn {method}(&mut self) {{}}\n}}\n", encoding="utf-8")
    assert rooms_one_way(src) == ["mmu/range/notifier.rs:1: range calls handle of fault"]


@pytest.mark.parametrize(("file", "text"), ALLOWED)
def test_what_is_allowed_is_not_found(file: str, text: str, tmp_path: Path) -> None:
    src = tree(tmp_path, file, text)
    whole = {one_writer, one_freer}  # these look at the tree as a whole
    assert [finding for rule in RULES if rule not in whole for finding in rule(src)] == []
