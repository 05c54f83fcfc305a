"""The plugin's errors. Each takes a single message, so that it can be passed on by DataLoader workers."""


class VgiftError(Exception):
    """Base of all errors of the plugin; `vgift` prints the message without a traceback and exits with `exit_status`."""

    exit_status = 2


class ConfigError(VgiftError):
    """Flags, a config file or an image folder are not usable. Lists all mistakes found, not only the first."""

    @classmethod
    def of(cls, mistakes):
        """Returns one error from a list of sentences."""
        lines = list(mistakes)
        head = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        return cls("\n".join([f"{head} in the vgift settings:", *(f"  - {line}" for line in lines)]))


class HostMismatchError(VgiftError):
    """The training code lacks something that the plugin replaces or uses, or has it in an unexpected form."""


class HookError(VgiftError):
    """A method was requested, but the hook cannot reach the training code."""

    exit_status = 3


class SelfTestError(VgiftError):
    """After the host's preprocessing, the labels of a sample are not exactly its answer."""


class TaskError(VgiftError):
    """A task failed on an image for a reason other than the image; names task, image, seed, epoch and index."""


class PhotoReadError(VgiftError):
    """The system failed repeatedly to read a photograph, for reasons that are not the picture's; names the path."""


class NoSuitableImageError(VgiftError):
    """No image was suitable for a sample after the allowed number of redraws; names task, images and seed."""


class UnsuitableImage(VgiftError):
    """This image is not suitable for this sample, so another one is drawn. Counted by `reason`; not shown to users.

    Args:
        reason: two or three words from a small set (`near-grey`, `missing file`), the key of the redraw report.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
