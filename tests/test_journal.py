import pytest

from vgift_plugin.data.journal import Journal, read_journals, read_lines
from vgift_plugin.errors import ConfigError


def test_an_unfinished_line_is_cut_off_and_a_damaged_one_told(tmp_path):
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(b'{"number": 0}\n{"number": 1}\n{"num')
    assert read_lines(path) == [{"number": 0}, {"number": 1}]
    journal = Journal(path)
    with pytest.raises(ConfigError, match="started twice"):
        Journal(path)
    journal.append(['{"number": 2}'])
    journal.close()
    assert path.read_bytes().endswith(b'{"number": 1}\n{"number": 2}\n')
    (tmp_path / "rank-1.jsonl").write_bytes(b'{"number": 3}\n\0\0\n{"number": 4}\n')
    with pytest.raises(ConfigError, match=r"rank-1\.jsonl: line 2 is damaged .*; take it out"):
        read_journals(tmp_path, "number")
