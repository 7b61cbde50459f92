"""Who may know whom in the core: words, then nouns, then verbs; and what the core must not know at all.

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
    ("words", "addr level access role profile spte generation work error plan config views mutants"),
    (
        "nouns",
        "shadow_page page_arena page_hash active_pages mmio_pages pte_list slot_array slots vcpu_mmu tlb"
        " host_memory guest_memory invalid_list invalidation runs slice lock_polls spte_table stats events state",
    ),
    (
        "verbs",
        "walk rmap guest_walk spte_write write_track unsync link zap reclaim sync get_page roots fault prefetch"
        " fast_page_fault mmio_fault dirty_log notifier zap_plan slot_walk hardware_walk head_walk"
        " install_slot zap_batch direct_map direct_page_fault nx_huge_pages prefault",
    ),
    ("watchers", "audit left_over snapshot stepped_dump saved"),
    ("facade", "mod"),
]
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
    """The name under src/mmu that a file belongs to: spte/layout.rs is `spte`."""
    first = path.relative_to(src / "mmu").parts[0]
    return first.removesuffix(".rs")


def named(src: Path, path: Path) -> list[tuple[int, str]]:
    """The rooms of src/mmu that a file names, with line numbers."""
    inside = path.relative_to(src / "mmu").with_suffix("").parts
    depth = len(inside) - (inside[-1] == "mod")  # how many `super::` lead to src/mmu itself
    text = "\n".join(code(path))
    found: list[tuple[int, str]] = []
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
    """src/mmu names neither src/ftrace nor src/py."""
    return lines_with(src, core_files(src), re.compile(r"crate::(ftrace|py)\b"))


def lines_with(src: Path, paths: list[Path], *patterns: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(src)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(code(path), 1)
        if any(pattern.search(line) for pattern in patterns)
    ]


def one_place(src: Path, what: str, pattern: re.Pattern[str], wanted: str) -> list[str]:
    """Exactly one file has the pattern, and it is the wanted one."""
    places = sorted({path.name for path in core_files(src) if pattern.search("\n".join(code(path)))})
    return [] if places == [wanted] else [f"{what}: {', '.join(places) or 'nowhere'}, and not only {wanted}"]


def one_writer(src: Path) -> list[str]:
    """SPTE words are written where the arena gives a table out for writing: in one file."""
    return one_place(src, "writes SPTE words", re.compile(r"\.\s*table_mut\("), "spte_write.rs")


def one_freer(src: Path) -> list[str]:
    """A shadow page goes back to the arena in one file, out of a list that was flushed."""
    return one_place(src, "frees shadow pages", re.compile(r"\barena\s*\.\s*release\("), "zap.rs")


RULES = [upward, outside, generation_steps, reader_knows_words, core_knows_no_reader, one_writer, one_freer]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_core_keeps(rule, root: Path) -> None:  # type: ignore[no-untyped-def]
    assert rule(root / "src") == []


BROKEN = [
    (upward, "mmu/addr.rs", "use crate::mmu::tlb::Tlb;\n"),
    (upward, "mmu/spte/make.rs", "use super::super::slots::Slot;\n"),
    (upward, "mmu/slots.rs", "use super::zap;\n"),
    (upward, "mmu/slots.rs", "use super::{addr::Gfn, fault::{self, Fault}};\n"),
    (upward, "mmu/zap.rs", "fn f() { crate::mmu::audit::audit(); }\n"),
    (upward, "mmu/attic.rs", "fn f() {}\n"),
    (outside, "mmu/addr.rs", "use pyo3::prelude::*;\n"),
    (outside, "mmu/addr.rs", "fn f() { let _ = std::time::Instant::now(); }\n"),
    (outside, "mmu/addr.rs", "use std::collections::HashMap;\n"),
    (outside, "mmu/addr.rs", 'fn f() { println!("x"); }\n'),
    (generation_steps, "mmu/slots.rs", "fn f(s: &mut S) { s.generation += 2; }\n"),
    (generation_steps, "mmu/slots.rs", "fn f(g: u64) -> u64 { self.generation.wrapping_add(4) }\n"),
    (generation_steps, "mmu/slots.rs", "fn f(generation: u64) -> bool { (generation & 0x7_ffff) == 0 }\n"),
    (generation_steps, "mmu/slots.rs", "fn is_wrap(g: u64) -> bool { g == 0 }\n"),
    (reader_knows_words, "ftrace/parse.rs", "use crate::mmu::zap::Prepared;\n"),
    (reader_knows_words, "ftrace/parse.rs", "use pyo3::Python;\n"),
    (core_knows_no_reader, "mmu/slots.rs", "use crate::ftrace::Event;\n"),
    (one_writer, "mmu/zap.rs", "fn f(&mut self) { self.arena.table_mut(page).set(0, 0); }\n"),
    (one_freer, "mmu/reclaim.rs", "fn f(&mut self) { self.arena.release(page); }\n"),
]
ALLOWED = [
    (
        "mmu/zap.rs",
        "//! See crate::mmu::audit.\nuse super::{addr::Gfn, rmap};\nuse crate::mmu::link::Link;\n",
    ),
    ("mmu/rmap.rs", "#[cfg(test)]\nmod tests {\n    use crate::mmu::zap;\n}\n"),
    ("mmu/zap_plan.rs", "fn f(s: &mut S) { s.mmu_valid_gen = s.mmu_valid_gen.wrapping_add(1); }\n"),
    ("mmu/slots.rs", "fn f(&self, generation: u64) -> bool { self.generation == generation }\n"),
    ("ftrace/parse.rs", "use crate::mmu::role::Role;\n"),
]


def tree(tmp_path: Path, file: str, text: str) -> Path:
    path = tmp_path / "src" / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return tmp_path / "src"


@pytest.mark.parametrize(("rule", "file", "text"), BROKEN)
def test_a_break_is_found(rule, file: str, text: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert rule(tree(tmp_path, file, text)) != []


@pytest.mark.parametrize(("file", "text"), ALLOWED)
def test_what_is_allowed_is_not_found(file: str, text: str, tmp_path: Path) -> None:
    src = tree(tmp_path, file, text)
    whole = {one_writer, one_freer}  # these look at the tree as a whole
    assert [finding for rule in RULES if rule not in whole for finding in rule(src)] == []
