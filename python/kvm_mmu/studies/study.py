"""Studies: articles whose numbers are all made by runs of the model (`kvm-mmu study`, docs/studies).

A study is a head in prose and questions, each answered by a function. Nothing depends on a clock or on chance, so that
the page of a study is the same text on every machine; a test writes each again and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvm_mmu.errors import UsageError
from kvm_mmu.machine.numbers import shown
from kvm_mmu.studies.gallery import Answer

SCHEMA = "kvm-mmu/study/1"
#: The rows that studies of rules go through, oldest first; all rows are on the page of the kernels.
ROWS = (
    *("v5.0", "v5.2", "v5.3", "v5.4", "v5.10", "v6.1.0", "v6.1"),
    *("v6.12.0", "v6.12", "v6.18", "v7.1", "v7.2.6", "v7.2", "v7.3"),
)


@dataclass(frozen=True)
class Study:
    """An article.

    Attributes:
        name: as the command line has it.
        title: its heading.
        about: one line on what it answers.
        head: what stands above the answers, Markdown.
        questions: number to what answers it.
    """

    name: str
    title: str
    about: str
    head: str
    questions: dict[str, Callable[[], Answer]]

    def answers(
        self, chosen: Iterable[str] = (), progress: Callable[[str], None] = lambda _text: None
    ) -> Iterator[Answer]:
        """Answer the questions asked for, all without numbers, in that order.

        Args:
            chosen: numbers of questions.
            progress: told what is being done.

        Returns:
            An answer each, as soon as it is there.

        Raises:
            UsageError: there is no such question.
        """
        asked = list(chosen) or list(self.questions)
        for number in asked:
            if number not in self.questions:
                raise UsageError(f"question {shown(number)}: expected one of {', '.join(self.questions)}")
        for number in asked:
            progress(f"{self.name} {number}")
            yield self.questions[number]()

    def page(self, found: Iterable[Answer]) -> str:
        """Write the study's page.

        Args:
            found: all answers.

        Returns:
            Markdown.
        """
        note = (
            f"<!-- Written by `kvm-mmu study {self.name} --markdown`; a test writes it again and compares. "
            "Do not edit. -->"
        )
        made = (
            f"Every number is made by `kvm-mmu study {self.name}`, those of one section by its number after it. The "
            "code beside a number is the digest of its run: equal digests, equal runs. Counts are exact and the "
            "same on every machine; a *work unit* is one list node, entry, reverse-map or parent step, with a zapped "
            "page counting 8, a freed one 4 and a flush 16. No time is told."
        )
        parts = [f"# {self.title}", note, self.head.strip(), made, *(one.to_markdown() for one in found)]
        return "\n\n".join(parts) + "\n"


def studies() -> dict[str, Study]:
    """The studies by name; the thread has a page and a command of its own (`kvm-mmu gallery thread`).

    Returns:
        Name to study.
    """
    from kvm_mmu.studies import parents, quirk, shadow_2026, tdp_bought

    every = (quirk.STUDY, tdp_bought.STUDY, parents.STUDY, shadow_2026.STUDY)
    return {study.name: study for study in every}
