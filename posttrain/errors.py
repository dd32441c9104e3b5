"""What a user is told when something is wrong: every problem at once, each with its place and its remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One fault of the input.

    Attributes:
        what: what is wrong, in words a user knows.
        where: the file and 1-based line (`recipe.yaml:12`), or "" where there is none.
        why: why it matters, or "".
        remedy: what to do about it, or "".
    """

    what: str
    where: str = ""
    why: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.why:
            text += f"\n    why: {self.why}"
        if self.remedy:
            text += f"\n    do:  {self.remedy}"
        return text


class PosttrainError(Exception):
    """The input or the environment is wrong; nothing was begun. The command line prints it and exits with 2."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class GateMissed(PosttrainError):
    """A stage ran, and its figures miss what the recipe requires of it. The run stops there, with its report."""

    exit_code = 3
