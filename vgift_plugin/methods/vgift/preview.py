"""`vgift preview`: shows the samples that training would see. Needs neither LLaVA nor torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from ...data.arguments import option
from ...data.files import write_whole
from ...data.records import read_records
from ...data.shared_file import Tally
from ...errors import ConfigError
from ...report.page import check_outputs, flag_words
from .flags import VgiftFlags
from .gallery import Section, gallery
from .grid import HELP, Grid, fitted, grid_of, seen
from .streams import find_replay, streams

HEAVY_MB = 20  # larger files are slow to open and too large to mail


def sections(
    flags: VgiftFlags, image_folder: str, data_path: str | None, n: int, tally: Tally, grid: Grid | None = None
) -> Iterator[Section]:
    """Yields the first n published samples of each task, then the first n samples of epoch 0 of each task in the flags.

    These are the samples of training. Redrawn images are counted in `tally`.
    """
    if n < 1:
        raise ConfigError(f"-n {n}: at least one sample")
    specs = fitted(flags.tasks(), grid)
    flags.require_samples()
    records = read_records(data_path)
    replay = find_replay(flags, records or (), image_folder)
    if replay is not None and records is not None:
        for task, positions in replay.positions():
            places = positions[:n].tolist()
            yield f"{task.name}, published", task, [replay.sample(place, records[place]) for place in places]
    for stream in streams(flags, specs, records, image_folder, replay):
        yield stream.task.name, stream.task, [seen(stream(0, j, tally), grid) for j in range(n)]


@dataclass(frozen=True, kw_only=True)
class Preview(VgiftFlags):
    """Show the samples that training would see, on one page that works offline; needs neither LLaVA nor torch."""

    UNUSED: ClassVar[tuple[str, ...]] = ("ssl_ratio", "ssl_weights_from", "ssl_control", "ssl_eval_steps")
    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift preview --ssl_tasks rotation,color,correspondence --image_folder DIR -n 12 -o gallery.html"
    )

    image_folder: str = option(help="images; with --data_path what its paths are relative to", metavar="DIR")
    data_path: Optional[str] = option(None, "LLaVA records whose images are used, instead of all in the folder")
    n: int = option(12, "samples of each task", short="-n")
    grid: Optional[str] = option(None, HELP, metavar="S,MIN,MAX")
    output: str = option(help="the page, .html", short="-o", metavar="FILE")

    def run(self) -> str:
        """See `preview`."""
        return preview(self, self.image_folder, self.data_path, self.n, self.output, self.grid)


def preview(flags: Any, image_folder: str, data_path: str | None, n: int, output: str, grid: str | None = None) -> str:
    """Writes the gallery page.

    Args:
        flags: an object or a mapping with the flags.
        image_folder: images, searched recursively; with `data_path`, the folder its paths are relative to.
        data_path: LLaVA records whose images are used, or None for all images in the folder.
        n: number of samples per task.
        output: the page, `.html`.
        grid: for models that look at pictures as they are; see `grid.grid_of`.

    Returns:
        one line for the terminal.

    Raises:
        ConfigError: a flag or a path is invalid; nothing was written.
    """
    check_outputs(output)
    tally = Tally()
    asked = VgiftFlags.of(flags)
    shown = list(sections(asked, image_folder, data_path, n, tally, grid_of(grid)))
    about = f"The first samples of epoch 0, as training sees them, with {flag_words(asked)}"
    write_whole(Path(output), gallery(shown, about).encode())
    redrawn = sum(count for reasons in tally.counts().values() for count in reasons.values())
    words = f"{redrawn} unsuitable image{'s' * (redrawn != 1)} passed over"
    drawn = ", ".join(f"{len(samples)} {title}" for title, _, samples in shown)
    megabytes = Path(output).stat().st_size / 1e6
    heavy = f"; {megabytes:.0f} MB, a smaller -n opens faster" if megabytes > HEAVY_MB else ""
    return f"{output}: {drawn} ({words}){heavy}"
