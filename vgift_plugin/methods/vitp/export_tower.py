"""`vgift export-tower`: writes the vision tower of a LLaVA checkpoint as a plain CLIPVisionModel folder."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import string
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from ... import __version__
from ...data.arguments import option
from ...data.files import whole_folder
from ...errors import ConfigError
from ...hosts import DEFAULT_HOST
from .training import NOTE

OWN = re.compile(r"(?:^|\.)vision_tower\.vision_tower\.(.+)$")  # LLaVA's wrapper, CLIP's model, CLIP's own name
SAFE, BIN = ("model.safetensors", "pytorch_model.bin")
NON_LORA = "non_lora_trainables.bin"

CARD = string.Template("""---
library_name: transformers
pipeline_tag: image-feature-extraction
---

# Vision tower of $name

A `CLIPVisionModel`, taken by `vgift export-tower` ($version) out of a LLaVA checkpoint.

| | |
|---|---|
| checkpoint | `$checkpoint` |
| weights from | $files |
| tower it was trained from | `$original` |
| training | $flags |
| weights | $dtype, $image_px px, patches of $patch_px px |
| LLaVA reads | layer $layer (`$feature`) |
| as in the original, or that in 16 bits | $unchanged |

Blocks after the layer that LLaVA reads get no gradient: use the features of that layer, or train the rest first.

```python
import torch
from transformers import CLIPImageProcessor, CLIPVisionModel

tower = CLIPVisionModel.from_pretrained("$folder")
processor = CLIPImageProcessor.from_pretrained("$folder")
pixels = processor(image, return_tensors="pt").pixel_values
features = tower(pixels, output_hidden_states=True).hidden_states[$layer][:, 1:]  # batch, patches, channels
side = int(features.shape[1] ** 0.5)
grid = features.transpose(1, 2).unflatten(2, (side, side))  # batch, channels, rows, columns: for a detector's neck
```
""")


def export_tower(checkpoint: str, output: str, model_base: str | None = None, vision_tower: str | None = None) -> str:
    """Writes the tower of a checkpoint: safetensors, config, image processor and a model card.

    Args:
        checkpoint: folder written by LLaVA's training or its merge_lora_weights.py: full, LoRA, or DeepSpeed's own.
        output: a new folder.
        model_base: for LoRA, the model it was trained from; its tower is used if the checkpoint has none.
        vision_tower: the original tower; by default the one in the checkpoint's config.

    Returns:
        a sentence for the terminal.

    Raises:
        ConfigError: a folder is not usable, or contains no trained tower; nothing was written.
    """
    from transformers import CLIPImageProcessor, CLIPVisionModel

    if Path(output).exists():
        raise ConfigError(f"-o {output}: exists already; name a new folder")
    settings = _settings(checkpoint)
    original = vision_tower or settings.get("mm_vision_tower")
    if not original:
        raise ConfigError(f"{checkpoint}/config.json names no mm_vision_tower: this is no checkpoint of a LLaVA")
    tensors, files, source = _first_with_tower(checkpoint, model_base, original, settings)
    settings = _settings(source)  # of the run that wrote these weights: its flags go on the card
    try:
        tower = CLIPVisionModel.from_pretrained(original)
        processor = CLIPImageProcessor.from_pretrained(original)
    except (OSError, ValueError) as err:
        first = str(err).splitlines()[0]
        raise ConfigError(
            f"the original tower {original}, whose config and image processor are needed, cannot be read as CLIP's: "
            f"{first} Say where it lies with --vision_tower."
        ) from err
    before = tower.state_dict()
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    if strange := sorted(set(tensors) - set(before)) + [
        name for name in tensors if name in before and tensors[name].shape != before[name].shape
    ]:
        raise ConfigError(f"{original} is not the tower {checkpoint} was trained from: {strange[0]} does not fit")
    same = [name for name in before if name not in tensors or _equal(tensors[name], before[name])]
    if len(same) == len(before):
        why = "it was frozen while training (--tune_vision_tower trains it)"
        if settings.get(DEFAULT_HOST.loads_tower):
            why = "it was trained, by steps too few or too small to change a weight"
        raise ConfigError(
            f"{checkpoint}: its vision tower is the original one, {original}, unchanged: {why}. Use that one."
        )
    tower.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    tower.load_state_dict(tensors, strict=False)  # tensors missing in the checkpoint were frozen
    card = CARD.substitute(
        name=Path(checkpoint).resolve().name,
        version=f"vgift-plugin {__version__}",
        checkpoint=checkpoint,
        files=", ".join(f"`{file}`" for file in files),
        original=original,
        flags=_flag_words(settings),
        dtype=" and ".join(sorted(kinds)),
        image_px=tower.config.image_size,
        patch_px=tower.config.patch_size,
        layer=settings.get("mm_vision_select_layer", -2),
        feature=settings.get("mm_vision_select_feature", "patch"),
        unchanged=_part_words(same, list(before)),
        folder=output,
    )
    try:
        with whole_folder(output) as folder:
            tower.save_pretrained(folder, safe_serialization=True)
            processor.save_pretrained(folder)
            (folder / "README.md").write_text(card, encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"-o {output}: cannot be written: {err}") from err
    return (
        f"{output}: {len(before) - len(same)} of {len(before)} tensors differ from {original}; "
        f"as they were: {_part_words(same, list(before))}"
    )


@dataclass(frozen=True)
class ExportTower:
    """Extract the trained vision tower of a checkpoint, as a plain CLIPVisionModel folder."""

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift export-tower checkpoints/llava-v1.5-7b -o tower\n\n"
        "Full, LoRA and merged checkpoints; DeepSpeed's own shards where DeepSpeed is installed."
    )

    checkpoint: str = option(help="the output folder of a run with --tune_vision_tower", positional=True)
    output: str = option(help="a new folder", short="-o", metavar="DIR")
    model_base: Optional[str] = option(
        None, "for LoRA: the model it was trained from, asked where the checkpoint has no tower of its own"
    )
    vision_tower: Optional[str] = option(
        None, "the original tower, name or folder; by default what the checkpoint's config says"
    )

    def run(self) -> str:
        """See `export_tower`."""
        return export_tower(self.checkpoint, self.output, self.model_base, self.vision_tower)


def _settings(checkpoint: str) -> dict[str, Any]:
    if not Path(checkpoint).is_dir():
        raise ConfigError(f"{checkpoint}: there is no such folder")
    for folder in (Path(checkpoint), Path(checkpoint).parent):  # a checkpoint-N of a LoRA run has no config.json
        if (folder / "config.json").is_file():
            return _json(folder / "config.json")
    raise ConfigError(f"{checkpoint}: there is no config.json in it, so it is no checkpoint of a LLaVA")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ConfigError(f"{path}: is no JSON: {err}. Was it written or copied to the end?") from err


def _first_with_tower(
    checkpoint: str, model_base: str | None, original: str, settings: dict[str, Any]
) -> tuple[dict[str, Tensor], list[str], str]:
    """Returns the tower's tensors, their files and the folder of these files: the checkpoint, else its base."""
    for folder in filter(None, (checkpoint, model_base)):
        tensors, files = tower_tensors(Path(folder))
        if tensors:
            return tensors, [str(Path(folder).resolve().name + "/" + file) for file in files], folder
        if (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / NON_LORA).is_file():
            raise ConfigError(  # the tower of its base may differ
                f"{folder}: there are no weights of a vision tower in it: of a LoRA run LLaVA writes what was trained "
                f"beside the adapter when training ends ({NON_LORA}), not into checkpoint-N. Name the run's output "
                "folder"
            )
    none = f"{' and '.join(filter(None, (checkpoint, model_base)))}: there are no weights of a vision tower in it"
    if settings.get(DEFAULT_HOST.loads_tower):
        raise ConfigError(
            f"{none}, though its config says that the tower was trained: in an earlier run, whose output folder is "
            "--model_base"
        )
    raise ConfigError(
        f"{none}, as LLaVA leaves it where the tower is frozen: the tower is the original one, {original}"
    )


def tower_tensors(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a checkpoint's tower under CLIP's own names, and the files it is in; both empty if it has none.

    Only the tensors of the tower are read; DeepSpeed's converter, however, has to assemble the whole model.

    Raises:
        ConfigError: a file is missing or broken, or DeepSpeed is not installed and there is only its own checkpoint.
    """
    from safetensors import SafetensorError

    found: dict[str, Tensor] = {}
    files: list[str] = []
    for name in _weight_files(folder):
        before = len(found)
        try:
            found |= dict(_safe(folder / name) if name.endswith(".safetensors") else _torch(folder / name))
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as err:
            raise ConfigError(
                f"{folder / name}: cannot be read: {(str(err) or type(err).__name__).splitlines()[0]}. Was it written "
                "or copied to the end?"
            ) from err
        files += [name] * (len(found) > before)
    if not found and any(folder.glob("global_step*")):
        found, files = dict(_of_deepspeed(folder)), ["global_step*"]
    return {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}, files


def _weight_files(folder: Path) -> list[str]:
    """Returns the files that hold weights; if there is an index, only those with parts of a tower."""
    files: list[str] = []
    for one in (SAFE, BIN):
        index = folder / f"{one}.index.json"
        if index.is_file():
            places = _json(index)["weight_map"]
            files += sorted({file for name, file in places.items() if OWN.search(name)})
        elif (folder / one).is_file():
            files.append(one)
        if files:
            break
    return files + [NON_LORA] * (folder / NON_LORA).is_file()


def _own(names: Any) -> Iterator[tuple[str, str]]:
    """Yields (name in the checkpoint, CLIP's own name) for the tower's tensors."""
    for name in names:
        if match := OWN.search(name):
            yield name, match.group(1)


def _safe(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        for name, own in _own(file.keys()):
            yield own, file.get_tensor(name)


def _torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    can_map = "mmap" in inspect.signature(torch.load).parameters and zipfile.is_zipfile(path)  # from torch 2.1 on
    mapped = {"mmap": True} if can_map else {}
    tensors = torch.load(path, map_location="cpu", weights_only=True, **mapped)
    for name, own in _own(tensors):
        yield own, tensors[name].clone()


def _of_deepspeed(folder: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as err:
        raise ConfigError(
            f"{folder} holds DeepSpeed's own shards alone. Where DeepSpeed is installed, run `python zero_to_fp32.py . "
            f"{BIN}` in it (it needs memory for the whole model in float32), then this again"
        ) from err
    tensors = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    for name, own in _own(tensors):
        yield own, tensors[name].clone()


def _equal(tensor: Tensor, original: Tensor) -> bool:
    """Returns whether a tensor equals the original, or the original rounded to bfloat16 or float16 by training."""
    kinds = (tensor.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(tensor, original.to(kind).to(tensor.dtype)) for kind in kinds)


def _flag_words(settings: dict[str, Any]) -> str:
    noted = settings.get(NOTE)
    if not noted:
        return "unknown: the config has no note of vgift-plugin"
    names = [name for name in noted if name != "version"]
    return " ".join(f"`--{name} {noted[name]}`" for name in names) + f" (vgift-plugin {noted['version']})"


def _part_words(same: list[str], names: list[str]) -> str:
    """Returns text listing the parts of the tower with all their tensors in `same`."""

    def part(name: str) -> str:
        block = re.search(r"encoder\.layers\.(\d+)\.", name)
        return f"block {int(block.group(1)) + 1}" if block else name.split(".")[1]

    parts = dict.fromkeys(map(part, names))
    changed = {part(name) for name in names if name not in set(same)}
    return ", ".join(one for one in parts if one not in changed) or "nothing"
