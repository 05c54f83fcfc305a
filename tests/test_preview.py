import base64
import io
import json
import re

import pytest
from conftest import VGIFT, call
from PIL import Image

from vgift_plugin.data.photos import from_folder
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.stream import Stream

ALL = "rotation,color,correspondence"


def preview(*args):
    return call([*VGIFT, "preview", *args])


def test_the_page_is_self_contained_and_shows_every_sample(photos, tmp_path):
    page = tmp_path / "gallery.html"
    done = preview("--ssl_tasks", ALL, "--image_folder", photos, "-n", 4, "-o", page)
    assert done.returncode == 0, done.stderr
    assert f"{page}: 4 rotation, 4 color, 4 correspondence" in done.stdout
    html = page.read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == html.count("<figure ") == 12
    assert all(Image.open(io.BytesIO(base64.b64decode(p))).size > (100, 100) for p in pictures)
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    stream = Stream(VgiftFlags(ssl_tasks="rotation").tasks()[0].task, from_folder(str(photos)), 0)
    for j in range(4):  # the very samples of training
        assert f'<div class="answer">{stream(0, j).response}</div>' in html


def test_records_choose_the_images(photos, data_path, tmp_path):
    out = tmp_path / "x.html"
    records = tmp_path / "records.json"
    records.write_text(
        json.dumps([one for one in json.loads(data_path.read_text()) if one.get("image") == "coffee.jpg"])
    )
    done = preview("--ssl_tasks", "rotation", "--image_folder", photos, "--data_path", records, "-n", 2, "-o", out)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"(\w+)\.jpg →", out.read_text())) == {"coffee"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ssl_tasks", "rotatoin", "-o", "x.html"], "did you mean 'rotation'?"),
        (["-o", "x.html"], "--ssl_tasks is missing; known tasks: color, correspondence, flipped"),
        (["--ssl_tasks", "rotation", "-o", "x.pdf"], "must end in .html"),
        (["--ssl_tasks", "rotation", "-o", "absent/x.html"], "there is no folder"),
        (["--ssl_tasks", "rotation", "-o", "x.html", "-n", "0"], "at least one sample"),
        (["--ssl_tasks", "rotation", "-o", "x.html", "--data_path", "absent.json"], "absent.json: cannot be read"),
        (["--ssl_tasks", "rotation", "-o", "x.html", "--data_path", "README.md"], "README.md: cannot be read"),
    ],
)
def test_mistakes_are_told_without_a_traceback(photos, args, message):
    done = preview("--image_folder", photos, *args)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_missing_folder_is_told(tmp_path):
    done = preview("--ssl_tasks", "rotation", "--image_folder", tmp_path / "absent", "-o", "x.html")
    assert done.returncode == 2 and "absent is not a folder" in done.stderr


def test_tasks_are_described():
    done = call([*VGIFT, "tasks"])
    assert done.returncode == 0
    for part in ("rotation   needs 1 image, chance 25.00%", "chance 0.83%", "chance 33.33%", "points = 5", "→ "):
        assert part in done.stdout


def test_configuration_is_json():
    assert json.loads(json.dumps(VgiftFlags().as_dict()))["ssl_ratio"] == 0.1
