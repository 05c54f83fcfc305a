"""Base classes of self-supervised tasks, which draw (choose), render (paint) and ask (word) samples."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Optional

import numpy as np
from PIL import Image

Params = dict[str, Any]
Box = tuple[int, int, int, int]
MAX_PX = 4096  # of any knob in pixels


def knob(default, help: str):
    """Returns a dataclass field for a knob, as shown by `vgift tasks` and the README and set by `--ssl_config`."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Sample:
    """One image-instruction-response triple, before any chat template.

    Attributes:
        task: the registry key of its task.
        image: RGB, of any size.
        instruction: text without image token and role marker.
        response: the short answer that is supervised.
        params: every choice made; JSON-able and, with the source images, sufficient to recreate the sample.
        sources: paths of the source photographs.
        redraws: number of unsuitable images skipped before this one.
        informative: (start, end) in characters of the parts of the instruction that the image determines.
        boxes: (left, top, right, bottom) in `image` of the pictures that the host gets one by one; none for the image
            as one picture.
    """

    task: str
    image: Image.Image
    instruction: str
    response: str
    params: Params
    sources: tuple[str, ...] = ()
    redraws: int = 0
    informative: tuple[tuple[int, int], ...] = ()
    boxes: tuple[Box, ...] = ()

    def pictures(self) -> list[Image.Image]:
        """Returns the pictures that the host gets."""
        return [self.image.crop(box) for box in self.boxes] or [self.image]

    def with_pictures_of(self, other: Sample) -> Sample:
        """Returns this sample's words with another one's pictures."""
        return replace(self, image=other.image, boxes=other.boxes)

    def record(self, id: str, image: str) -> dict[str, Any]:
        """Returns the sample as a LLaVA record with its picture at path `image`, such as `a.png`; several pictures are
        at `a-0.png`, `a-1.png`."""
        stem, dot, suffix = image.rpartition(".") if "." in image else (image, "", "")
        return {
            "id": id,
            "image": [f"{stem}-{k}{dot}{suffix}" for k in range(len(self.boxes))] or image,
            "conversations": [
                {"from": "human", "value": "<image>\n" * max(1, len(self.boxes)) + self.instruction},
                {"from": "gpt", "value": self.response},
            ],
        }


@dataclass(frozen=True)
class Task:
    """Base of all tasks: a frozen dataclass whose fields are its knobs.

    A subclass sets `name` and `wordings`, and defines `draw`, `render`, `response` and `chance`, and if needed `words`
    and `grade`.

    Class attributes:
        name: registry key, the stem of the task's file.
        images: number of source photographs per sample.
        whole: whether a sample must be seen from edge to edge; hosts that crop to the centre get it on a square canvas.
        wordings: paraphrases of the instruction; `{placeholders}` are filled by `words`.
        informative: the placeholders whose values are determined by the image and so can be learned from it; the rest
            of an instruction is a template.
        pairs: the class that makes this task's samples from matched pairs of photographs (`--ssl_pairs`), if any.
    """

    name: ClassVar[str] = ""
    images: ClassVar[int] = 1
    whole: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = ()
    informative: ClassVar[tuple[str, ...]] = ()
    pairs: ClassVar[Optional[type[PairTask]]] = None

    wording: Optional[int] = knob(None, "use this one wording for every sample (0 is the first); null draws one")

    def __post_init__(self):
        if self.wording is not None and not 0 <= self.wording < len(self.wordings):
            raise ValueError(f"wording must be null or 0 to {len(self.wordings) - 1}, not {self.wording}")
        for name in self.knobs():
            if name.endswith("_px") and (getattr(self, name) or 0) > MAX_PX:
                raise ValueError(f"{name} must be at most {MAX_PX}, not {getattr(self, name)}")

    @property
    def picture_px(self) -> Optional[int]:
        """The longest side of what `render` returns with these knobs; None if it depends on the photograph."""
        return None

    @property
    def longest_px(self) -> Optional[int]:
        """The longest side photographs are needed at, so that JPEG files can be decoded smaller; None for no limit.

        It is twice `picture_px` if that is known, so that the final resize uses a good filter.
        """
        return None if self.picture_px is None else 2 * self.picture_px

    @property
    def several_images(self) -> bool:
        """Whether a sample's record has several images with these knobs."""
        return False

    def scaled(self, factor: float) -> Task:
        """Returns the task scaled: its knobs in pixels, except `min_side_px`, are multiplied by `factor`."""
        knobs = {name: getattr(self, name) for name in self.knobs() if name.endswith("_px") and name != "min_side_px"}
        return replace(self, **{name: round(value * factor) for name, value in knobs.items() if value is not None})

    def draw(self, rng: np.random.Generator, images: list[Image.Image]) -> Params:
        """Returns every choice of one sample.

        Args:
            rng: the sample's own generator; the only source of randomness.
            images: `self.images` RGB photographs, EXIF orientation already applied.

        Returns:
            JSON-able choices, sufficient for `render` and `ask`.

        Raises:
            UnsuitableImage: no sample can be made from these photographs; others will be drawn.
        """
        raise NotImplementedError(f"{type(self).__name__}.draw")

    def render(self, images: list[Image.Image], params: Params) -> Image.Image:
        """Returns the sample's RGB image; a pure function of its arguments."""
        raise NotImplementedError(f"{type(self).__name__}.render")

    def boxes(self, images: list[Image.Image], params: Params) -> tuple[Box, ...]:
        """Returns where in the rendered image the pictures lie that the host gets one by one; none for one picture."""
        return ()

    def response(self, params: Params) -> str:
        """Returns the short answer."""
        raise NotImplementedError(f"{type(self).__name__}.response")

    def words(self, params: Params) -> dict[str, str]:
        """Returns {placeholder of the wording: its value}."""
        return {}

    def ask(self, params: Params) -> tuple[str, str]:
        """Returns (instruction, response), both without image token and role marker."""
        return self.wordings[params["wording"]].format(**self.words(params)), self.response(params)

    def informative_spans(self, params: Params) -> tuple[tuple[int, int], ...]:
        """Returns (start, end) in the instruction of each value of an `informative` placeholder."""
        if not self.informative:
            return ()
        filled, spans, length = self.words(params), [], 0
        for literal, name, _, _ in string.Formatter().parse(self.wordings[params["wording"]]):
            length += len(literal)
            if name is not None:
                spans += [(length, length + len(filled[name]))] * (name in self.informative)
                length += len(filled[name])
        return tuple(spans)

    def score(self, reply: str, params: Params) -> float:
        """Returns the score of `reply` in [0, 1]; 1 only for the response itself, up to spaces and a full stop.

        Replies are compared exactly, not by substring ("0" is in "90"), so the score can serve as a verifiable reward.
        """
        return self.grade(reply, self.response(params))

    def grade(self, reply: str, response: str) -> float:
        """Returns the score of `reply` given the correct `response`; see `score`. Override it for partial credit."""
        return float(tidy(reply) == response)

    @property
    def chance(self) -> float:
        """The probability in [0, 1] that a blind uniform guess is entirely correct."""
        raise NotImplementedError(f"{type(self).__name__}.chance")

    def draw_wording(self, rng: np.random.Generator) -> int:
        """Returns the index of a wording: the knob's if set, else a uniformly random one."""
        return int(rng.integers(len(self.wordings))) if self.wording is None else self.wording

    @classmethod
    def knobs(cls) -> dict[str, tuple[Any, str]]:
        """Returns {knob: (default, help)} in the order of definition, `wording` last."""
        shown = {f.name: (f.default, f.metadata.get("help", "")) for f in fields(cls)}
        shown["wording"] = shown.pop("wording")
        return shown


@dataclass(frozen=True)
class PairTask(Task):
    """A task whose samples are made from two photographs and a stored match of their points."""

    images: ClassVar[int] = 2

    def draw_match(self, match: Mapping[str, Any], rng: np.random.Generator) -> Params:
        """Returns every choice of one sample, given a stored match; see `draw`.

        Args:
            match: a row of `vgift pairs`.
            rng: the sample's own generator.

        Raises:
            KeyError, TypeError, ValueError: the row is malformed.
            UnsuitableImage: no sample can be made from this draw.
        """
        raise NotImplementedError(f"{type(self).__name__}.draw_match")


def listed(words: Iterable[object], last: str) -> str:
    """Returns words as a list in a sentence: `0, 1 or 2` for 0, 1, 2 and `or`."""
    *most, final = map(str, words)
    return f"{', '.join(most)} {last} {final}"


def tidy(reply: str) -> str:
    """Returns a reply without surrounding white space and one final full stop: ` 90. ` -> `90`."""
    return reply.strip().removesuffix(".").rstrip()
