"""The tasks' scores as verifiable rewards: for TRL, verl and ms-swift, or any code that calls `reward`.

Importing this package loads no trainer and no framework; see README.md.
"""

from .answer import FORMS, find_answer
from .chance import expected_by_chance
from .score import KINDS, Reward, reward

__all__ = ["FORMS", "KINDS", "Reward", "expected_by_chance", "find_answer", "reward"]
