"""Which characters of a text each token stands for."""

import re

import pytest

from vgift_plugin.hosts.token_text import TokenText

pytestmark = pytest.mark.host


def test_parts_of_a_character_and_the_place_of_a_picture(tokenizers):
    for tokenizer in tokenizers.values():
        ids = tokenizer("aß 😀").input_ids
        texts = TokenText(tokenizer)
        text, spans = texts.read([*ids[:2], -200, *ids[2:]])
        assert text.removeprefix("<s>").strip() == "aß 😀"
        assert spans[2][0] == spans[2][1]
        assert "".join(sorted(set("".join(text[a:b] for a, b in spans)))) == "".join(sorted(set(text)))
        cut, places = texts.read(ids[:-1])
        assert re.fullmatch(re.escape(text[:-1]) + "[\udc80-\udcff]+", cut) and len(places) == len(ids) - 1
