"""A plugin of ms-swift: `--external_plugins .../vgift_rewards.py --reward_funcs vgift_score`.

Rows need the columns `task` and `params` (JSON), which `vgift export --format messages` writes. The file has a folder
of its own since ms-swift puts that folder on the path of imports, where a neighbour called trl.py would hide TRL.
"""

from swift.rewards import ORM, orms

from vgift_plugin.rewards.score import KINDS
from vgift_plugin.rewards.trl import reward_funcs


class TaskReward(ORM):
    """One field of `Reward`, called with completions and columns; the answer may be plain, tagged or boxed."""

    kind = "score"

    def __call__(self, completions, task, params, **columns):
        """Returns a float for each completion, and None for rows without a task."""
        (function,) = reward_funcs((self.kind,), form="any")
        return function(completions=completions, task=task, params=params)


for _kind in KINDS:
    orms[f"vgift_{_kind}"] = type(f"TaskReward_{_kind}", (TaskReward,), {"kind": _kind})
