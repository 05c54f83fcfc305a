"""Two pictures side by side, and questions whose answer is the number of a candidate."""

from __future__ import annotations

from typing import ClassVar

from .task import Params, Task, listed

GAP_PX = 16


class TwoPictures(Task):
    """A task that shows two pictures side by side. A subclass has the knob `size_px`, the longest side of each."""

    size_px: int

    @property
    def picture_px(self) -> int:
        """Width of two pictures and the gap."""
        return 2 * self.size_px + GAP_PX


class NumberedCandidates(TwoPictures):
    """A task that asks which of the numbered candidates on the right belongs to the left picture.

    A subclass has the knob `candidates`, or a constant of that name.

    Class attributes:
        first: the number of the first candidate.
    """

    candidates: int
    first: ClassVar[int] = 0

    def words(self, params: Params) -> dict[str, str]:
        """Returns the numbers of the candidates: `0, 1 and 2`."""
        return self.numbers(len(params["candidates"]))

    def numbers(self, count: int) -> dict[str, str]:
        """Returns the placeholder of `count` candidates' numbers."""
        return {"numbers": listed(range(self.first, self.first + count), "and")}

    def response(self, params: Params) -> str:
        """Returns the number of the right candidate: `0`, `1` or `2`."""
        return str(self.first + params["answer"])

    @property
    def chance(self) -> float:
        """1/candidates: 1/3 for three."""
        return 1 / self.candidates
