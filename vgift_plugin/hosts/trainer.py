"""What is asked of transformers' trainer, on all its versions: logging, sums over ranks, names that changed."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any


def is_rank_zero() -> bool:
    """Tells whether this process speaks for the run; torchrun, DeepSpeed and accelerate all set RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def on_trainer_made(act: Callable[[], None]) -> Any:
    """Returns a trainer callback that calls `act` when the trainer has been made."""
    from transformers import TrainerCallback

    class OnTrainerMade(TrainerCallback):
        def on_init_end(self, args, state, control, **kwargs):
            act()

    return OnTrainerMade()


def evaluation_strategy(args: Any) -> str:
    """Returns when the training script evaluates: `no`, `steps` or `epoch`; transformers 4.41 renamed the flag."""
    strategy = getattr(args, "eval_strategy", None) or getattr(args, "evaluation_strategy", None) or "no"
    return str(getattr(strategy, "value", strategy))


def steps_per_epoch(batches: int, accumulation: int) -> int:
    """Returns how many optimizer steps the trainer counts for an epoch: newer versions round up, older ones down."""
    return max(1, batches // accumulation + int(_rounds_up() and batches % accumulation > 0))


@cache
def _rounds_up() -> bool:
    """Tells whether this transformers counts the last, smaller group of batches; its code says so in one expression."""
    from transformers import Trainer

    parts = (getattr(Trainer, name, None) for name in ("set_initial_training_values", "_inner_training_loop"))
    return any(
        "% args.gradient_accumulation_steps > 0" in inspect.getsource(part) for part in parts if part is not None
    )


def log_metrics(args: Any, state: Any, logs: dict[str, float], values: dict[str, float], digits: int = 4) -> None:
    """Adds numbers to what the trainer logs, from within `on_log`: its log line, its history, wandb and TensorBoard.

    The two reporters run before a data module's callbacks and have read `logs` already, so they get the values too.
    """
    values = {name: round(value, digits) for name, value in values.items()}
    logs.update(values)
    state.log_history[-1].update(values)
    if not is_rank_zero():
        return
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        run.log({**{f"train/{name}": value for name, value in values.items()}, "train/global_step": state.global_step})
    if "tensorboard" in args.report_to:
        writer = _tensorboard(args.logging_dir)
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, state.global_step)
        writer.flush()


@cache
def _tensorboard(folder: str) -> Any:
    """Returns a writer into the folder of the trainer's own; TensorBoard shows all files of a folder as one run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        from tensorboardX import SummaryWriter  # type: ignore[no-redef]
    return SummaryWriter(folder)


def all_reduced(values: Any) -> list:
    """Returns a tensor summed over all ranks, which must all call it, as (nested) lists; `values` is used up.

    NCCL adds on the GPU alone, where a rank that counted nothing may not have its zeros yet.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        values = values.to("cuda" if dist.get_backend() == "nccl" else values.device)
        dist.all_reduce(values)
    return values.tolist()


def counts_of_all_ranks(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Returns {what: {reason: count}} summed over all ranks, which must all call it."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return counts
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, counts)
    total: dict[str, dict[str, int]] = {}
    for one in gathered:
        for what, reasons in one.items():
            mine = total.setdefault(what, {})
            for reason, count in reasons.items():
                mine[reason] = mine.get(reason, 0) + count
    return total
