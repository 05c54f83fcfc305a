"""Every error a user can meet. Each takes one message, so that it crosses a DataLoader worker unharmed."""


class VgiftError(Exception):
    """Base of all errors raised on purpose; `vgift` prints its message without a traceback and exits with a status."""

    exit_status = 2


class ConfigError(VgiftError):
    """Flags, a config file or an image folder are not usable. Lists every mistake found, not the first alone."""

    @classmethod
    def of(cls, mistakes):
        """Returns one error from a list of sentences."""
        lines = list(mistakes)
        head = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        return cls("\n".join([f"{head} in the vgift settings:", *(f"  - {line}" for line in lines)]))


class HostMismatchError(VgiftError):
    """The training code lacks what the plugin replaces or asks, or has it in another form than expected."""


class HookError(VgiftError):
    """Something was asked for, and the code that trains cannot be reached by the hook."""

    exit_status = 3


class SelfTestError(VgiftError):
    """A self-supervised sample did not come out of the host's preprocessing with its answer as the only labels."""


class TaskError(VgiftError):
    """A task failed on an image for a reason that is not the image's; names task, image, seed, epoch and index."""


class NoSuitableImageError(VgiftError):
    """No image was suitable for a sample after the allowed number of redraws; names task, images and seed."""


class UnsuitableImage(VgiftError):
    """This image cannot carry this sample: draw another one. Never reaches a user; `reason` is what is counted.

    Args:
        reason: two or three words out of a small set (`near-grey`, `missing file`), the key of the redraw report.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
