"""A run of a plan (or another walk under `mmu_lock`): resumable at every lock break, counted exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvm_mmu.errors import RunStateError

if TYPE_CHECKING:
    from kvm_mmu.machine.vm import Vm
    from kvm_mmu.machine.zap_plan import ZapPlan


class ZapRun:
    """One run of a plan, or of another walk under `mmu_lock`, with what it did.

    `outcome` is `done`, or `stale_next` with `page` and `step`: the walk's cached next page had left the active list.
    """

    def __init__(
        self, vm: Vm, plan: ZapPlan | None, progress: tuple[int | None, dict[str, Any] | None]
    ) -> None:
        self._vm = vm
        self.plan = plan
        self._run, self._report = progress
        self._is_interrupted = False

    def __repr__(self) -> str:
        if self._report is None:
            return (
                f"<ZapRun {self.plan} {'interrupted' if self._is_interrupted else 'paused at a lock break'}>"
            )
        return f"<ZapRun {self.plan} {self.outcome}, {self.nr_zapped} zapped, {self.work['walk_visited']} visited>"

    def _repr_html_(self) -> str:
        from kvm_mmu.view.html import run_html

        state = "interrupted" if self._is_interrupted else "paused at a lock break"
        plan = "another walk" if self.plan is None else str(self.plan)
        return run_html(plan, state, self._report)

    @property
    def paused(self) -> bool:
        """True if the run waits at a lock break."""
        return self._run is not None

    def resume(self) -> None:
        """Take the lock again and go on to the next lock break or the end.

        Raises:
            RunStateError: the run has ended.
            KeyboardInterrupt: the run is given up as by `close`, and has no result; so for whatever a signal handler
                raises.
        """
        if self._run is None:
            raise RunStateError("this run has ended")
        run, self._run = self._run, None
        self._is_interrupted = True
        self._run, self._report = self._vm.core.resume(run)
        self._is_interrupted = False

    def close(self) -> None:
        """End a paused run: commit what was prepared (flush, then free). A finished run stays as it is."""
        if self._run is not None:
            run, self._run = self._run, None
            self._report = self._vm.core.abandon(run)

    def _of(self, key: str) -> Any:
        return self.report[key]

    @property
    def report(self) -> dict[str, Any]:
        """Everything below as one dict."""
        if self._is_interrupted:
            raise RunStateError("the run was interrupted; it has no result")
        if self._report is None:
            raise RunStateError("the run is paused at a lock break; it has no result yet")
        return dict(self._report)

    @property
    def ret(self) -> int:
        """What the kernel function would have returned."""
        return int(self._of("ret"))

    @property
    def outcome(self) -> str:
        """The end of the run (`done`, `stale_next`, `livelock` when roots in use were met again and again, or
        `abandoned`).
        """
        return str(self._of("outcome"))

    @property
    def page(self) -> int | None:
        """The page that had left the list, with the outcome `stale_next`."""
        page: int | None = self._of("page")
        return page

    @property
    def step(self) -> int | None:
        """The number of list nodes visited until then, with the outcome `stale_next`."""
        step: int | None = self._of("step")
        return step

    @property
    def work(self) -> dict[str, int]:
        """Exact work counts of this run alone (operations run inside its lock breaks excluded)."""
        return dict(self._of("work"))

    @property
    def nr_zapped(self) -> int:
        """Pages prepared for zapping, in-use roots not counted (prepare's own count, summed)."""
        return int(self._of("nr_zapped"))

    @property
    def longest_hold(self) -> int:
        """The longest time the lock was held for writing without a break, in work units."""
        return int(self._of("longest_hold"))

    @property
    def shared_units(self) -> int:
        """The work done while the lock was held for reading and faults went on, in work units."""
        return int(self._of("shared_units"))

    @property
    def longest_shared_hold(self) -> int:
        """The longest stretch of that without a break, in work units."""
        return int(self._of("longest_shared_hold"))


class Pause:
    """A lock break of a run: the lock is dropped until the loop goes on."""

    def __init__(self, run: ZapRun) -> None:
        self.run = run

    def __repr__(self) -> str:
        return f"<Pause of {self.run.plan}>"
