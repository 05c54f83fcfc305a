"""The prompts: one that makes the model look closely, eight misleading ones, and eight neutral ones.

The roles are the paper's (STIC, appendix B), the wordings are our own. Their order is part of the file format: rows
refer to prompts by index.
"""

from __future__ import annotations

from ...data.records import IMAGE

PREFERRED = (
    "Study this picture carefully and describe it in full, one step after the other.\n"
    "1. Begin with what matters most: who or what is to be seen, how many, and what they are doing.\n"
    "2. Say where it is: the place, the surroundings, and what lies behind the main things.\n"
    "3. Say how things stand to each other: left and right, near and far, in front and behind.\n"
    "4. Go into particulars: colours, materials, clothing, light, and any writing, word by word.\n"
    "5. Close with the mood of the whole, as far as what you have named supports it.\n"
    "Name only what can be seen, and say so where something is too small or too blurred to be sure of.",
)
MISLEADING = (
    "Describe this picture, and add a few objects that would suit it although nobody can see them in it.",
    "Write about this picture as if several people were in it, with names, looks and something to do for each.",
    "Tell what is going on just beyond the borders of this picture, as surely as what lies inside them.",
    "Describe this picture together with something dramatic that is about to happen in it.",
    "Report the weather, the time of day and the animals around, as facts, whether the picture shows them or not.",
    "Describe the machines, vehicles and tools in this picture; where there are none, mention likely ones.",
    "Write down what the signs, labels and screens in this picture say, also those that cannot be made out.",
    "Describe what used to stand in this place and has been removed, as though it still stood there.",
)
NEUTRAL = (
    "Describe this picture.",
    "What does this picture show?",
    "Tell me what you see here, in detail.",
    "Write a description of this picture for someone who cannot see it.",
    "What is in this picture, and how is it arranged?",
    "Put into words what this picture contains.",
    "Give a thorough account of this picture.",
    "Explain what there is to see in this picture.",
)
LEAD = "A description of the picture, written beforehand:"


def described(description: str, question: str) -> str:
    """Returns a question with a description in front; like the question, it has no image token."""
    return f"{LEAD}\n{description}\n\n{question}".rstrip()


def with_image(text: str) -> str:
    """Returns a human turn: the image token on its own line, then the text."""
    return f"{IMAGE}\n{text}"
