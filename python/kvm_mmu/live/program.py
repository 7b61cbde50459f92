"""Opening a source: a dump's file, `/proc/kcore`, QEMU's monitor, or a program that drgn has open already.

Owns: which way a source is opened, and where its symbols and types come from. Above it nothing asks what the source is.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvm_mmu.errors import LiveError
from kvm_mmu.live import packed, symbols
from kvm_mmu.live.btf import Btf
from kvm_mmu.live.chains import Faults
from kvm_mmu.live.layout import Layout
from kvm_mmu.live.memory import Memory

KCORE = "/proc/kcore"
QMP = "qmp:"
_XZ = b"\xfd7zXZ\0"
_ELF = b"\x7fELF"


@dataclass
class Opened:
    """A source that is open: the drgn program, its memory and layout, and what was not readable on the way."""

    source: str
    program: Any
    memory: Memory
    layout: Layout
    vmcoreinfo: str
    faults: Faults = field(default_factory=Faults)
    #: Whether the memory changes while it is read.
    is_live: bool = False

    def symbol(self, name: str) -> int | None:
        """The address of a symbol; None where there is none."""
        return symbols.address_of(self.program, name)

    def info(self, key: str) -> str | None:
        """A line of VMCOREINFO."""
        return next(
            (line.partition("=")[2] for line in self.vmcoreinfo.splitlines() if line.startswith(f"{key}=")),
            None,
        )


def import_drgn() -> Any:
    """The module drgn.

    Raises:
        LiveError: it is not installed; the message says how to get it.
    """
    try:
        import drgn
    except ImportError:
        raise LiveError(
            "drgn is not installed: pip install 'kvm_mmu[live]' (Linux only; drgn has wheels for x86-64 and arm64)"
        ) from None
    return drgn


def new_program(is_known: bool = True) -> Any:
    """A program of drgn for this project's machine, x86-64."""
    drgn = import_drgn()
    return drgn.Program(drgn.Platform(drgn.Architecture.X86_64)) if is_known else drgn.Program()


def open_source(
    source: str,
    facts: str | Path | None = None,
    debug: Sequence[str | Path] = (),
    connect: Callable[[Any, str], None] | None = None,
) -> Opened:
    """Open a source and find its symbols and types.

    Args:
        source: a dump's file, `/proc/kcore`, or `qmp:SOCKET`.
        facts: a folder with `types.btf` and `symbols.json`; None: they are in the source.
        debug: files with debug information to use in place of BTF.
        connect: in place of drgn's own way to a running kernel: called with the program and the source.

    Raises:
        LiveError: it cannot be opened, or is no x86-64 kernel's memory.
    """
    drgn = import_drgn()
    carried: tuple[bytes, dict[str, tuple[int, int]]] | None = None
    try:
        if connect is not None:
            program = new_program()
            connect(program, source)
        elif source == KCORE:
            program = new_program(False)
            program.set_kernel()
        elif source.startswith(QMP):
            program = new_program()
            program.set_qemu_qmp(source.removeprefix(QMP))
        else:
            program, carried = _open_file(source)
    except LiveError:
        raise
    except PermissionError as error:
        raise LiveError(f"{source}: {error.strerror}; reading a running kernel needs root") from None
    except Exception as error:  # drgn's own errors have no common root
        raise LiveError(f"{source}: cannot be opened: {_first_line(error)}") from None
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise LiveError(
            f"{source}: no Linux kernel's memory (no VMCOREINFO in it): for a dump by QEMU the guest needs "
            "-device vmcoreinfo and the module qemu_fw_cfg"
        )
    is_live = bool(program.flags & drgn.ProgramFlags.IS_LIVE) or source.startswith(QMP)
    return prepare(program, source, facts, debug, carried, is_live)


def prepare(
    program: Any,
    source: str,
    facts: str | Path | None = None,
    debug: Sequence[str | Path] = (),
    carried: tuple[bytes, dict[str, tuple[int, int]]] | None = None,
    is_live: bool = False,
    has_types: bool = False,
) -> Opened:
    """Give an open program its symbols and types.

    Raises:
        LiveError: it has none.
    """
    drgn = import_drgn()
    if program.platform is not None and program.platform.arch != drgn.Architecture.X86_64:
        raise LiveError(f"{source}: a kernel of {program.platform.arch.name}, expected X86_64")
    try:
        info = program["VMCOREINFO"].string_().decode("latin-1")
    except (LookupError, ValueError, drgn.FaultError):
        info = ""
    memory = Memory(program)
    faults = Faults()
    if facts is not None:
        carried = symbols.read_facts(facts)
    if has_types:
        pass
    elif debug:
        _load_debug(program, debug)
    elif carried is not None:
        symbols.register_facts(program, carried[1])
        symbols.register_types(program, [Btf(carried[0], "types of the facts")])
    else:
        symbols.load_kernel_symbols(program)
        types = symbols.load_kernel_types(program, memory)
        symbols.load_modules(program, memory, types, faults)
    return Opened(source, program, memory, Layout(program), info, faults, is_live)


def _load_debug(program: Any, debug: Sequence[str | Path]) -> None:
    try:
        program.load_debug_info([str(path) for path in debug])
    except Exception as error:
        raise LiveError(f"debug information: {_first_line(error)}") from None


def _open_file(source: str) -> tuple[Any, tuple[bytes, dict[str, tuple[int, int]]] | None]:
    try:
        with Path(source).open("rb") as file:
            head = file.read(16)
            if head.startswith(_XZ):
                file.seek(0)
                return packed.open_packed(_unpacked(file, source), source)
    except (OSError, ValueError) as error:
        raise LiveError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    if not head:
        raise LiveError(f"{source}: is empty, expected a dump of a kernel's memory")
    program = new_program(not head.startswith(_ELF))
    program.set_core_dump(source)
    return program, None


def _unpacked(file: Any, source: str) -> bytes:
    reader = lzma.LZMADecompressor(memlimit=packed.MAX_BYTES)
    try:
        data = reader.decompress(file.read(packed.MAX_BYTES), packed.MAX_BYTES)
    except (lzma.LZMAError, EOFError, MemoryError) as error:
        raise LiveError(f"{source}: damaged xz data: {error}") from None
    if not reader.eof:
        raise LiveError(
            f"{source}: is cut short, or more than {packed.MAX_BYTES >> 20} MiB unpacked: unpack it with xz -d"
        )
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
