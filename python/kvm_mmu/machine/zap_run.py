"""A run of a plan (or another walk under `mmu_lock`): resumable at every lock break, counted exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvm_mmu.errors import RunStateError

if TYPE_CHECKING:
    from kvm_mmu.machine.vm import Vm
    from kvm_mmu.machine.zap_plan import ZapPlan


class ZapRun:
    """What a run did: `work` (exact counts of this run), `outcome`, `nr_zapped`, `longest_hold` (work units).

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

    @property
    def paused(self) -> bool:
        """Whether the run waits at a lock break."""
        return self._run is not None

    def resume(self) -> None:
        """Take the lock again and go on to the next lock break or the end.

        Raises:
            KeyboardInterrupt, or what a signal handler raises: the run is given up as by `close`, and has no result.
        """
        if self._run is None:
            raise RunStateError("this run has ended")
        run, self._run = self._run, None
        self._is_interrupted = True
        self._run, self._report = self._vm.core.resume(run)
        self._is_interrupted = False

    def close(self) -> None:
        """End a paused run: commit what was prepared (flush, then free). Does nothing to a finished one."""
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
        """`done`, `stale_next`, `livelock` (roots in use met again and again without end) or `abandoned`."""
        return str(self._of("outcome"))

    @property
    def page(self) -> int | None:
        """With `stale_next`: the page that had left the list."""
        page: int | None = self._of("page")
        return page

    @property
    def step(self) -> int | None:
        """With `stale_next`: how many list nodes had been visited."""
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
        """The longest time the lock was held without a break, in work units."""
        return int(self._of("longest_hold"))


class Pause:
    """A lock break of a run: the lock is dropped until the loop goes on."""

    def __init__(self, run: ZapRun) -> None:
        self.run = run

    def __repr__(self) -> str:
        return f"<Pause of {self.run.plan}>"
