"""The pages say what is true: their Python runs, their commands exist, their links lead somewhere.

README and the tutorial are run as a reader would, block after block in one session. Names in tables are
looked up: invariants in the audit, functions of the kernel map in the sources of core and reference.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)])
RUN = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "howto.md"]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def anchor(heading: str) -> str:
    """As the renderers of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_readme_is_a_page_of_its_own() -> None:
    """It is what a package index shows: no address that only a clone has, no file that a wheel has not."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.MULTILINE)
    assert [target for target in targets if not target.startswith("https://")] == []
    only_in_a_clone = r"\b(?:docs|tests|examples|benches|fuzz|src)/|\b[A-Z]+\.md\b"
    assert re.findall(only_in_a_clone, text) == []


@pytest.mark.parametrize("path", RUN, ids=name)
def test_python_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__page__"}
    for number, text in enumerate(blocks(path, "python"), 1):
        exec(compile(text, f"{name(path)} block {number}", "exec"), session)


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "reference" / "scenario.md"], ids=name)
def test_the_scenarios_of_the_pages_do_something(path: Path, tmp_path: Path) -> None:
    """Each is run; its access to memory ends as a hit."""
    texts = [text for text in blocks(path, "json") if '"scenario"' in text.splitlines()[0]]
    assert texts
    for text in texts:
        (tmp_path / "scenario.jsonl").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "kvm_mmu", "run", "scenario.jsonl", "--kernel", "v5.2"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert '"outcome":"hit"' in done.stdout


# Run by tests of their own (tests/lab) or by `make demo`: half a minute each.
ELSEWHERE = ("kvm-mmu demo", "kvm-mmu gallery thread")
SHELL = [
    (path, line.split(" #")[0].strip())
    for path in RUN
    for text in blocks(path, "sh")
    for line in text.splitlines()
    if line.startswith("kvm-mmu ") and not line.startswith(ELSEWHERE)
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the pages speak of."""
    where = tmp_path_factory.mktemp("desk")
    data = ROOT / "tests" / "data"
    (where / "tests").symlink_to(ROOT / "tests")
    # The witness of the thread without its last operation, which is the wrap that the pages force.
    lines = (
        (data / "scenarios" / "restart_witness.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    (where / "scenario.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    for name in ("trace.txt.xz", "host.json"):
        shutil.copy(data / "traces" / "5.0.1-npt" / "basic" / name, where / name)
    return where


@pytest.mark.parametrize(
    ("path", "line"), SHELL, ids=lambda part: name(part) if isinstance(part, Path) else part
)
def test_shell_runs(path: Path, line: str, desk: Path) -> None:
    """In the order of the page, one directory for all: a later command reads what an earlier one wrote."""
    program = f"{shlex.quote(sys.executable)} -m kvm_mmu"
    done = subprocess.run(
        ["bash", "-c", line.replace("kvm-mmu", program, 1)],
        cwd=desk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name(path)}: {line}\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
    assert done.stdout or ">" in line


def help_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *words, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"kvm-mmu {' '.join(words)} --help: {done.stderr[-500:]}"
    return done.stdout


def commands(text: str) -> list[list[str]]:
    """Every `kvm-mmu ...` in shell blocks and in code spans, as words."""
    found = []
    for _, block in (pair for pair in FENCE.findall(text) if pair[0] in ("sh", "console")):
        for line in block.splitlines():
            match = re.search(r"(?:^|[\s/])kvm-mmu ([a-z][^#>|]*)", line)
            if match:
                found.append(match[1].split())
    found += [span.split() for span in re.findall(r"`kvm-mmu ([a-z][^`]*)`", text)]
    return [words for words in found if words]


def subcommands(help_text: str) -> set[str]:
    """The names that argparse lists under `COMMAND`."""
    _, _, after = help_text.partition("  COMMAND\n")
    return set(re.findall(r"^    (\w+)\b", after, re.MULTILINE))


def test_commands_exist() -> None:
    """Subcommand, its own subcommand and every `--option` that a page names are in the program's help."""
    known: dict[tuple[str, ...], str] = {(): help_of()}
    for path in PAGES:
        for words in commands(path.read_text(encoding="utf-8")):
            if words[0] == "SUBCOMMAND":
                continue
            where = f"{name(path)}: kvm-mmu {' '.join(words)}"
            chain: tuple[str, ...] = ()
            for word in words[:2]:
                offered = subcommands(known[chain])
                if not offered:
                    break
                # A page may name several at once: `trace summary|decode`.
                assert set(word.split("|")) <= offered, f"{where}: no subcommand {word}"
                word = word.split("|")[0]
                chain = (*chain, word)
                if chain not in known:
                    known[chain] = help_of(*chain)
            for option in (word.split("=")[0] for word in words if word.startswith("--")):
                assert option in known[chain], f"{where}: no {option} in its help"


def test_every_subcommand_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert subcommands(help_of()) == set(re.findall(r"^\| `kvm-mmu (\w+)`", text, re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, section = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{name(path)} links to {target}"
        if section:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert section in map(anchor, headings), f"{name(path)} links to {target}"


def test_the_list_of_examples_is_whole() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")}
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == sorted(files)


def test_the_kernel_map_names_what_exists() -> None:
    """`chapter.module.function` of the reference and `file::function` of the core are looked up in the sources."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (ROOT / "docs" / "kernel-map.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 30
    missing = []
    for _, core, reference, *_ in rows:
        for file, function in re.findall(r"`(\w+(?:::\w+)*)::(\w+)`", core):
            paths = (ROOT / "src" / "mmu").glob(f"*/{file.replace('::', '/')}.rs")
            path = next(
                (path for path in paths if path.parent.name != "tests"), ROOT / "src" / "mmu" / f"{file}.rs"
            )
            if not path.is_file() or not re.search(rf"\bfn {function}\b", path.read_text(encoding="utf-8")):
                missing.append(f"{file}::{function}")
        for file in re.findall(r"`(machine/\w+\.py)`", core):
            if not (ROOT / "python" / "kvm_mmu" / file).is_file():
                missing.append(file)
        for module, function in re.findall(r"`(\w+(?:\.\w+)?)\.(\w+)`", reference):
            path = ROOT / "python" / "kvm_mmu" / "reference" / f"{module.replace('.', '/')}.py"
            if not path.is_file() or not re.search(
                rf"^def {function}\b", path.read_text(encoding="utf-8"), re.MULTILINE
            ):
                missing.append(f"reference.{module}.{function}")
        assert core and reference and "::`" not in core, f"not filled in: {core}"
    assert missing == []


def test_the_invariants_are_those_of_the_audit() -> None:
    """Name and sentence of every invariant and property, in the order of src/mmu/watch/audit.rs and judge.rs."""
    source = (ROOT / "src" / "mmu" / "watch" / "audit.rs").read_text(encoding="utf-8")
    listed = source[source.index("pub const INVARIANTS") :]
    known = re.findall(r'\(\s*"(\w+)",\s*"([^"]+)",?\s*\)', listed[: listed.index("];")])
    page = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8").split("## Of a live VM")[0]
    listed = (ROOT / "src" / "mmu" / "watch" / "judge.rs").read_text(encoding="utf-8")
    listed = listed[listed.index("pub const PROPERTIES") :]
    judged = re.findall(r'\(\s*"(\w+)",\s*"([^"]+)",\s*"[^"]+",?\s*\)', listed[: listed.index("];")])
    assert len(judged) > 25
    assert known + judged == re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE)


def test_the_numbers_of_the_readme_are_those_of_the_thread() -> None:
    """The table at the top of README against the generated page, which the model itself is held against."""
    thread = (ROOT / "docs" / "the-thread.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)`[^|]* \| ([\d,]+) \| (n\^[\d.]+) \|",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [plan for plan, *_ in rows] == ["seed", "merged", "indexed"]
    for plan, visited, growth in rows:
        measured = re.search(
            rf"^\| 10% \| random \| {plan} \|.*\| ([\d,]+) \| (n\^[\d.]+)", thread, re.MULTILINE
        )
        assert measured and (visited, growth) == measured.groups()


def test_the_map_has_every_file_of_the_core() -> None:
    """The rooms in docs/architecture.md against src/mmu, both ways."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `mmu/(\w+)` \| (.*) \|$", page, re.MULTILINE))
    core = ROOT / "src" / "mmu"
    rooms = {
        room.name: sorted(path.stem for path in room.iterdir() if path.name != "mod.rs")
        for room in core.iterdir()
        if room.is_dir() and room.name != "tests"
    }
    assert {room: sorted(re.findall(r"`(\w+)`", files)) for room, files in rows.items()} == rooms


def test_the_table_of_facts_is_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "kernels", "table"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    page = (ROOT / "docs" / "reference" / "kernels.md").read_text(encoding="utf-8")
    again = "write it again: kvm-mmu kernels table, to the end of docs/reference/kernels.md"
    assert page[page.index("| fact | rule |") :].splitlines() == done.stdout.splitlines(), again


def test_the_table_of_bugs_is_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "kernels", "bugs"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    again = "write it again: kvm-mmu kernels bugs, into docs/fidelity.md"
    assert done.stdout.strip() in page, again


def test_the_table_of_recordings_is_what_the_command_prints() -> None:
    """Of the counts beside the recordings, which the tests that replay them hold."""
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", "trace", "fidelity", "tests/data/traces", "--kept"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    again = (
        "write it again: kvm-mmu trace fidelity tests/data/traces --keep, to the end of docs/fidelity.md (a recording "
        "that is new needs its outputs.json, and this replays it)"
    )
    assert page[page.index("| kernel | scenario |") :].split() == done.stdout.split(), again
    equal, outputs = re.findall(r"(\d+) of \d+ (?:recordings|outputs)", done.stdout)
    assert equal == str(len(list((ROOT / "tests" / "data" / "traces").glob("*/*/outputs.json"))))
    sentence = f"All {equal} that this project carries, {int(outputs):,} outputs"
    assert sentence in page


def test_the_table_of_evidence_is_what_the_command_prints() -> None:
    command = ["trace", "evidence", "tests/data/traces", "--vectors", "tests/vectors/equal.txt"]
    done = subprocess.run(
        [sys.executable, "-m", "kvm_mmu", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    table = page[page.index("| kernel | release |") : page.index("## How it is checked")]
    assert table.strip().splitlines() == done.stdout.splitlines(), (
        f"write it again: kvm-mmu {' '.join(command)}"
    )
