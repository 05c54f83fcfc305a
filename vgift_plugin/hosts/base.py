"""Interface to a training code: one object per family, listed in `hosts.HOSTS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

Breaks = tuple[tuple[str, tuple[int, ...], str], ...]
# Looked up by every host's `train()` as globals of its module; the plugin replaces them.
ARGUMENTS, MAKE = "DataArguments", "make_supervised_data_module"


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a run.

    Attributes:
        names: under which the host knows it; the first is what `--version` takes.
        markers: role markers and separators; some templates supervise them beside the answer.
    """

    names: tuple[str, ...]
    markers: tuple[str, ...] = ()

    def without_markers(self, text: str) -> str:
        """Returns decoded labels without role markers and separators, white space folded."""
        for marker in filter(None, (marker.strip() for marker in self.markers)):
            text = text.replace(marker, " ")
        return " ".join(text.split())


class TextPath:
    """How a host words and tokenises a record, without its picture; picklable."""

    def __call__(self, record: dict) -> dict[str, Any]:
        """Returns {"input_ids": (length,), "labels": (length,)}."""
        raise NotImplementedError

    def ids(self, record: dict) -> list[int]:
        """Returns the ids of a record."""
        return self(record)["input_ids"].tolist()


class Host(Protocol):
    """One family of training codes.

    Attributes:
        name: as users call it.
        prepare: name of the model's method that turns token ids and pictures into embeddings; "" where the model's
            forward does that itself.
        trainer_name: the global under which `train()` looks up its trainer class.
        refused: {flag of the plugin that has no effect here: why, and what to do instead}.
        refuses: why nothing that the plugin's flags ask for can be done here, and what to do instead; else "".
        several_images: whether a record may have several images.
        loads_tower: the switch in a checkpoint's config.json with which the host loads the checkpoint's vision tower
            instead of the original one.
        breaks: (package, first version that breaks this host without the plugin, too, how).
    """

    name: str
    prepare: str
    trainer_name: str
    refused: Mapping[str, str]
    refuses: str
    several_images: bool
    loads_tower: str
    breaks: Breaks

    @property
    def packages(self) -> tuple[str, ...]:
        """Import names of the package that trains; a class attribute, as the next two."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Training modules that are attached to as soon as they are imported."""

    @property
    def prepared(self) -> tuple[str, ...]:
        """What `prepare` returns, by the names of `model_hooks.Prepared`."""

    # The module that trains
    def missing(self, module: ModuleType) -> list[str]:
        """Returns what a module lacks to be this host's, one sentence each; empty where it is."""

    def trainer(self, module: ModuleType) -> type:
        """Returns the trainer class that `train()` will make; HostMismatchError where it cannot be reached."""

    # One run
    def tokenizer(self, arguments: Mapping[str, Any]) -> Any:
        """Returns the tokenizer among the arguments of `make_supervised_data_module`."""

    def is_multimodal_already(self, tokenizer: Any) -> bool:
        """Returns whether the run begins from a checkpoint trained with pictures; False where it is unknown."""

    def sees(self, data_args: Any) -> bool:
        """Tells whether the run's model looks at pictures."""

    def records(self, dataset: Any) -> Sequence[dict]:
        """Returns the base records; they are not copied."""

    def image_folder(self, data_args: Any) -> str | None:
        """Returns what the records' pictures are relative to."""

    def source(self, data_args: Any) -> str:
        """Returns what to call the base records in the mix table."""

    def check_run(self, data_args: Any, world: int) -> None:
        """Raises ConfigError where `world` ranks would not hold the same records, with the cure."""

    def conversations(self, dataset: Any) -> int:
        """Returns how many conversations the base records are; a packed item counts each of its own."""

    # From a record to an item
    def item(self, dataset: Any, record: dict) -> Any:
        """Returns the dataset's item for a record whose pictures have absolute paths; raises what the host raises."""

    def lengths(self, dataset: Any, record: dict) -> dict[str, int]:
        """Returns the length attributes that the host's samplers ask its dataset for, for this record alone."""

    def visible_ids(self, ids: Any) -> list[int]:
        """Returns token ids (any shape) as a flat list, with a negative number for each place of a picture."""

    def segments(self, dataset: Any, index: int, item: Any) -> list[tuple[slice, dict]]:
        """Returns the conversations in item `index`: which of its tokens, and the base record."""

    def crop_canvas(self, dataset: Any) -> tuple[int, int, int] | None:
        """Returns the colour to pad a picture to a square with, where the host would cut its borders off; else None."""

    def seen_px(self, data_args: Any) -> tuple[int, str]:
        """Returns the longest side at which a picture is looked at (0 if unknown) and that in words."""

    def grid(self, dataset: Any) -> tuple[int, int, int] | None:
        """Returns (step, least, most) where pictures are looked at as they are: both sides in multiples of `step`
        pixels, the area in [least, most]. None where the host brings every picture to one size."""

    def text_path(self, dataset: Any, tokenizer: Any, limit: int) -> TextPath:
        """Returns how the host words and tokenises a record, without its picture, `limit` tokens at most."""

    def template(self, module: ModuleType, data_args: Any, tokenizer: Any) -> ChatTemplate:
        """Returns the run's chat template."""

    # The model
    def model(self, model: Any) -> Any:
        """Returns the host's own model inside whatever wraps it; HostMismatchError where there is none."""

    def vision_tower(self, model: Any) -> Any:
        """Returns the module that holds the vision tower; None where there is none."""

    def tower_not_saved(self, args: Any) -> list[str]:
        """Returns the training arguments with which the host would not save a trained tower, one sentence each."""

    def projector(self, model: Any) -> Any:
        """Returns what turns the tower's features into embeddings; None where it has another name."""

    def visual_tokens(self, model: Any) -> int | None:
        """Returns how many tokens a picture takes (more where it is cut into several); None if that is unknown."""

    def token_limit(self, model: Any) -> int | None:
        """Returns how many tokens a row may have; None if that is unknown or unlimited."""
