"""From token ids back to characters: which characters of the text each token stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

Span = tuple[int, int]  # start and end, in characters

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"  # sentencepiece's
ESCAPED = "".join(map(chr, range(0xDC80, 0xDD00)))  # bytes that are no whole character, as "surrogateescape" has them


def byte_alphabet() -> dict[str, int]:
    """Returns the characters by which byte-level BPE (GPT-2 and all after it) writes bytes down, {character: byte}.

    Bytes that print stand for themselves; the rest, in order, for the characters from U+0100 on: `Ġ` is the space.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printing)
    return {chr(byte): byte for byte in printing} | {chr(0x100 + k): byte for k, byte in enumerate(others)}


class TokenText:
    """Texts of one tokenizer's tokens: slow or fast, sentencepiece with bytes for rare characters, or byte-level BPE.

    Args:
        tokenizer: any of transformers'.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        alphabet = byte_alphabet()
        self._alphabet = alphabet if alphabet.keys() <= vocabulary.keys() and SPACE not in vocabulary else None
        self._added = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        self._known: dict[int, bytes] = {}

    def read(self, ids: Sequence[int]) -> tuple[str, list[Span]]:
        """Returns the text of tokens, and for each of them which characters it stands for, as (start, end).

        A character written by several tokens belongs to each of them. Bytes that make no whole character (a sequence
        cut off in the middle of one) stay as lone surrogates. A negative id, a picture's place, has no text.
        """
        pieces = self._bytes(ids)
        data = b"".join(pieces)
        ends = list(accumulate(map(len, pieces), initial=0))
        text = data.decode("utf-8", "surrogateescape")
        if len(text) < len(data):
            of_byte = [k for k, character in enumerate(text) for _ in character.encode("utf-8", "surrogateescape")]
            of_byte.append(len(text))
            return text, [
                (of_byte[start], of_byte[end - 1] + 1 if start < end else of_byte[start])
                for start, end in pairwise(ends)
            ]
        return text, list(pairwise(ends))

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens alone."""
        return b"".join(self._bytes(ids)).decode("utf-8", "surrogateescape")

    def _bytes(self, ids: Sequence[int]) -> list[bytes]:
        known = self._known
        if missing := [one for one in dict.fromkeys(ids) if one not in known]:
            real = [one for one in missing if one >= 0]
            known.update(dict.fromkeys(missing, b""))
            known.update(zip(real, map(self._of, real, self.tokenizer.convert_ids_to_tokens(real)), strict=True))
        return [known[one] for one in ids]

    def _of(self, id: int, piece: str | bytes | None) -> bytes:
        if isinstance(piece, bytes):
            return piece
        if id in self._added:
            return str(self._added[id]).encode()
        if piece is None:  # an embedding without a token: vocabularies are padded
            return b""
        if self._alphabet is not None:
            return bytes(map(self._alphabet.__getitem__, piece))
        if match := BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(SPACE, " ").encode()
