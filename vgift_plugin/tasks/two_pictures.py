"""Two pictures side by side, and questions whose answer is the number of a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from .task import Box, Params, Task, knob, listed

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


@dataclass(frozen=True)
class OneOrTwoImages(NumberedCandidates):
    """A task whose two pictures may be two images of the record, as in V-GIFT's setup for LLaVA-OneVision-1.5.

    Class attributes:
        two_image_wordings: `wordings` for two images, as many.
    """

    two_image_wordings: ClassVar[tuple[str, ...]] = ()

    two_images: bool = knob(False, "two images in one record instead of one picture, for training code that takes them")

    @property
    def several_images(self) -> bool:
        """The knob `two_images`."""
        return self.two_images

    def drawn(self, params: Params) -> Params:
        """Returns the choices of a sample, with the number of its images."""
        return {**params, "two_images": True} if self.two_images else params

    def sizes(self, images: list[Image.Image], params: Params) -> list[tuple[int, int]]:
        """Returns (width, height) of both pictures."""
        raise NotImplementedError(f"{type(self).__name__}.sizes")

    def boxes(self, images: list[Image.Image], params: Params) -> tuple[Box, ...]:
        """Returns where both pictures lie if they are two images."""
        if not params.get("two_images"):
            return ()
        (width, height), (right, other) = self.sizes(images, params)
        return (0, 0, width, height), (width + GAP_PX, 0, width + GAP_PX + right, other)

    def ask(self, params: Params) -> tuple[str, str]:
        """Returns (instruction, response); see `Task.ask`."""
        if not params.get("two_images"):
            return super().ask(params)
        return self.two_image_wordings[params["wording"]].format(**self.words(params)), self.response(params)
