"""Datasets that take another record where one fails, as MoE-LLaVA's and LLaVA-NeXT's do: the first error is told."""

import random
from types import SimpleNamespace

import pytest

from vgift_plugin.hosts.llava import LLaVA


class Records:
    def __init__(self, records, image_folder="there"):
        self.list_data_dict, self.data_args = records, SimpleNamespace(image_folder=image_folder)
        self.read = []

    def __len__(self):
        return len(self.list_data_dict)

    def look(self, i):
        self.read.append(i)
        record = self.list_data_dict[i]
        if "broken" in record:
            raise ValueError(record["broken"])
        return record


class TakesAnother(Records):
    def __getitem__(self, i):
        try:
            return self.look(i)
        except Exception as err:
            print(f"Error with {err}")
            return self.__getitem__(random.randint(0, len(self) - 1))


class TriesAgain(Records):
    def __getitem__(self, i):
        for _ in range(300):
            try:
                return self._get_item(i)
            except Exception as err:
                print(f"failed: {err}")
        return self._get_item(i)

    def _get_item(self, i):
        return self.look(i)


class Raises(Records):
    def __getitem__(self, i):
        return self.look(i)


@pytest.mark.parametrize("kind", [TakesAnother, TriesAgain, Raises])
def test_the_first_error_is_told(kind):
    dataset = kind([{"id": 0}])
    assert LLaVA().item(dataset, {"id": 1}) == {"id": 1}
    try:
        raise KeyError("being handled by whoever asks")
    except KeyError:
        assert LLaVA().item(dataset, {"id": 2}) == {"id": 2}
    dataset.read.clear()
    with pytest.raises(ValueError, match="no such processor"):
        LLaVA().item(dataset, {"broken": "no such processor"})
    assert dataset.read == [0] and type(dataset) is kind and dataset[0] == {"id": 0}
