r"""Finds the answer in a reply: the whole reply, the last `<answer>…</answer>`, or the last `\boxed{…}`.

Only literal string searches are used, each linear in the reply, so no reply is slow to read.
"""

from __future__ import annotations

FORMS = ("plain", "answer", "boxed", "any")
REPLY_CHARS = 100_000  # longer replies have no answer
ANSWER_CHARS = 1_000  # nor do replies with a longer answer: no task has one
OPEN, CLOSE = "<answer>", "</answer>"
BOX = "\\boxed{"
THINK, THOUGHT = "<think>", "</think>"

# What a prompt may add so that a model knows the form; `plain` needs nothing, since each task's wording asks for it.
REQUESTS = {
    "plain": "",
    "any": "",
    "answer": "Write the answer between <answer> and </answer>.",
    "boxed": "Write the answer as \\boxed{answer}.",
}


def find_answer(reply: str, form: str = "plain") -> tuple[str | None, bool]:
    r"""Returns (the answer, whether the reply has the form).

    What stands before the last `</think>` is thought and not read. The answer is then

    - `plain`: all the rest.
    - `answer`: what the last `<answer>…</answer>` holds.
    - `boxed`: what the last `\boxed{…}` holds.
    - `any`: one of the two where the reply has its tag, else all the rest.

    A reply has the form if it holds one answer. Of several tags the last counts, but the reply lacks the form.

    Args:
        reply: the model's reply, without the prompt and without the end-of-turn token.
        form: one of FORMS.

    Returns:
        (None, False) if the reply is longer than 100,000 characters, the thought does not end, a tag is left open or
        stands within another, the form is missing, `any` finds both kinds of tag, or the answer is longer than 1,000
        characters. (answer, form) otherwise, the answer stripped of white space.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if len(reply) > REPLY_CHARS:
        return None, False
    rest = reply[reply.rfind(THOUGHT) + len(THOUGHT) :] if THOUGHT in reply else reply
    if THINK in rest:
        return None, False
    if form == "any":
        tagged, boxed = OPEN in rest or CLOSE in rest, BOX in rest
        if tagged and boxed:
            return None, False
        form = "answer" if tagged else "boxed" if boxed else "plain"
    found, times = {"plain": _whole, "answer": _tagged, "boxed": _boxed}[form](rest)
    if found is None or len(found) > ANSWER_CHARS:
        return None, False
    return found.strip(), times == 1


def _whole(text: str) -> tuple[str | None, int]:
    return text.strip(), int(bool(text.strip()))


def _tagged(text: str) -> tuple[str | None, int]:
    """Returns what the last pair of tags holds, and the number of pairs; None if they do not pair up."""
    times, end = text.count(OPEN), text.rfind(CLOSE)
    if not times or times != text.count(CLOSE) or text.rfind(OPEN) > end:
        return None, 0
    found = text[text.rfind(OPEN) + len(OPEN) : end]
    return (None, 0) if CLOSE in found else (found, times)


def _boxed(text: str) -> tuple[str | None, int]:
    """Returns what the last box holds, and the number of boxes; None if it is open, within another or holds braces."""
    times, last = text.count(BOX), text.rfind(BOX)
    between = text[text.find(BOX) : last] if times else ""
    found, closed, _ = text[last + len(BOX) :].partition("}")
    if not times or not closed or "{" in found or between.count("{") != between.count("}"):
        return None, 0
    return found, times
