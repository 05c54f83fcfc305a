"""Exported samples are those of training, whole or not at all, the same bytes whoever wrote them."""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HAS_HOST, call, torchrun
from PIL import Image

from vgift_plugin import get_task
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.vgift.export.job import ExportSamples
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.rewards.trl import reward_funcs
from vgift_plugin.rewards.verl import compute_score

TASKS = "rotation,color,correspondence"
FLAGS = {"ssl_tasks": TASKS, "ssl_seed": 7}


def export(flags, image_folder, output, format, **options):
    return ExportSamples(**flags, image_folder=image_folder, output=output, format=format, **options).run()


def tree(folder):
    """Returns {path: hash} of all files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and ".parts" not in path.parts
    }


def pixels(image):
    return np.asarray(image.convert("RGB"))


@pytest.fixture
def trained_on(photos):
    """{id: sample} of epoch 2 as training would see them."""
    flags = VgiftFlags.of(FLAGS)
    made = streams(flags, flags.tasks(), None, str(photos), None)
    return {f"vgift-{stream.task.name}-2-{j}": stream(2, j) for stream in made for j in range(6)}


def write(photos, out, format, **options):
    options = {"n": 6, "epoch": 2, "chunk_size": 4, "workers": 1, **options}
    return export(FLAGS, str(photos), str(out), format, **options)


def test_llava_records_and_lossless_pictures(photos, tmp_path, trained_on):
    told = write(photos, tmp_path / "out", "llava")
    assert "6 rotation, 6 color, 6 correspondence" in told
    records = json.loads((tmp_path / "out" / "vgift.json").read_text())
    assert [record["id"] for record in records] == list(trained_on)
    for record in records:
        sample = trained_on[record["id"]]
        assert (pixels(Image.open(tmp_path / "out" / record["image"])) == pixels(sample.image)).all()
        human, gpt = record["conversations"]
        assert human == {"from": "human", "value": f"<image>\n{sample.instruction}"}
        assert gpt == {"from": "gpt", "value": sample.response}
    assert [path.name for path in (tmp_path / "out" / ".parts").iterdir()] == ["rank-0.jsonl"]
    assert write(photos, tmp_path / "out", "llava").endswith("complete already, nothing to do")


def test_two_images_of_a_record_are_two_files(photos, tmp_path):
    (tmp_path / "knobs.json").write_text('{"correspondence": {"two_images": true}}')
    flags = {"ssl_tasks": "correspondence", "ssl_config": str(tmp_path / "knobs.json")}
    export(flags, str(photos), str(tmp_path / "out"), "llava", n=3)
    for record in json.loads((tmp_path / "out" / "vgift.json").read_text()):
        assert [Image.open(tmp_path / "out" / name).size for name in record["image"]] == [(160, 160)] * 2
        assert record["conversations"][0]["value"].count("<image>") == 2
    with pytest.raises(ConfigError, match="has 2 pictures, and TRL takes one"):
        export(flags, str(photos), str(tmp_path / "trl"), "trl", n=3)


def test_pictures_on_a_grid_of_patches(photos, tmp_path):
    export({**FLAGS, "grid": "28,200000,260000"}, str(photos), str(tmp_path / "out"), "llava", n=4)
    for record in json.loads((tmp_path / "out" / "vgift.json").read_text()):
        width, height = Image.open(tmp_path / "out" / record["image"]).size
        assert width % 28 == height % 28 == 0 and 200_000 <= width * height <= 260_000
    for wrong in ("28", "28,a,9", "0,1,2", "28,900,800", "64,1,100"):
        with pytest.raises(ConfigError, match=f"--grid {wrong}: "):
            export({**FLAGS, "grid": wrong}, str(photos), str(tmp_path / "no"), "llava", n=4)
    assert not (tmp_path / "no").exists()


def test_messages_load_in_datasets_and_score(photos, tmp_path, trained_on):
    datasets = pytest.importorskip("datasets")
    write(photos, tmp_path / "out", "messages")
    lines = str(tmp_path / "out" / "vgift.jsonl")
    loaded = datasets.load_dataset("json", data_files=lines, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == list(trained_on)
    for row in loaded:
        sample = trained_on[row["id"]]
        user, assistant = row["messages"]
        assert [block["type"] for block in user["content"]] == ["image", "text"]
        assert user["content"][1]["text"] == sample.instruction
        assert assistant["content"][0]["text"] == row["solution"] == sample.response
        assert get_task(row["task"])().score(row["solution"], json.loads(row["params"])) == 1
        assert (pixels(Image.open(tmp_path / "out" / row["images"][0])) == pixels(sample.image)).all()


def test_shards_load_in_webdataset(photos, tmp_path, trained_on):
    webdataset = pytest.importorskip("webdataset")
    write(photos, tmp_path / "out", "webdataset")
    shards = sorted(map(str, (tmp_path / "out").glob("*/*.tar")))
    assert [Path(shard).name for shard in shards[:2]] == ["color-000000.tar", "color-000001.tar"]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == len({sample["__key__"] for sample in samples}) == 18
    for sample in samples:
        content = json.loads(sample["json"])
        want = trained_on[content["id"]]
        assert (pixels(Image.open(io.BytesIO(sample["png"]))) == pixels(want.image)).all()
        assert [turn["role"] for turn in content["texts"]] == ["user", "assistant"]
        assert content["texts"][1]["content"] == want.response and content["params"] == want.params


def tables(folder):
    """Returns the Parquet files of an export, and all their rows."""
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = sorted(Path(folder).glob("*/*.parquet"))
    return paths, [row for path in paths for row in parquet.read_table(path).to_pylist()]


def test_tables_for_verl_are_scored_by_its_reward_function(photos, tmp_path, trained_on):
    pytest.importorskip("pyarrow")
    (tmp_path / "knobs.json").write_text(json.dumps({"color": {"points": 3}}))
    flags = {**FLAGS, "ssl_config": str(tmp_path / "knobs.json")}
    export(flags, str(photos), str(tmp_path / "out"), "verl", n=6, epoch=2, chunk_size=4, workers=1)
    paths, rows = tables(tmp_path / "out")
    assert [path.name for path in paths[:2]] == ["color-000000.parquet", "color-000001.parquet"]
    assert {row["extra_info"]["id"] for row in rows} == set(trained_on) and len(rows) == 18
    for row in rows:
        sample, extra = trained_on[row["extra_info"]["id"]], row["extra_info"]
        (turn,), (picture,) = row["prompt"], row["images"]
        assert (
            turn["role"] == "user" and turn["content"].startswith("<image>\n") and turn["content"].count("<image>") == 1
        )
        assert row["data_source"] == f"vgift/{sample.task}" and row["reward_model"]["style"] == "rule"
        answer = row["reward_model"]["ground_truth"]
        earned = compute_score(row["data_source"], f"\\boxed{{{answer}}}", answer, extra)
        assert earned == {"score": 1, "exact": 1, "form": 1, "gain": 1}
        assert compute_score(row["data_source"], "", answer, extra)["score"] == 0
        assert json.loads(extra["knobs"]) == ({"points": 3} if sample.task == "color" else {})
        if sample.task != "color":
            assert answer == sample.response
            assert (pixels(Image.open(io.BytesIO(picture["bytes"]))) == pixels(sample.image)).all()
    assert [row["extra_info"]["index"] for row in rows[:6]] == list(range(6))


def test_tables_for_trl_load_in_datasets_and_score(photos, tmp_path, trained_on):
    datasets = pytest.importorskip("datasets")
    write(photos, tmp_path / "out", "trl")
    paths = list(map(str, tables(tmp_path / "out")[0]))
    loaded = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded["id"]) == set(trained_on)
    (score,) = reward_funcs()
    for row in loaded:
        sample = trained_on[row["id"]]
        assert row["prompt"] == [{"role": "user", "content": sample.instruction}]
        assert (pixels(row["image"]) == pixels(sample.image)).all()
        assert score(completions=[row["solution"]], task=[row["task"]], params=[row["params"]]) == [1]


@pytest.mark.parametrize("format", ["verl", "trl"])
def test_a_missing_library_is_told_with_its_cure(photos, tmp_path, monkeypatch, format):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ConfigError, match=rf"--format {format} needs the pyarrow library: pip install 'vgift-plugin\[rl"
    ):
        write(photos, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.host
def test_torchrun_shares_the_work(photos, tmp_path):
    command = ["-m", "vgift_plugin.cli", "export", "--ssl_tasks", TASKS, "--ssl_seed", 7, "--image_folder", photos]
    command += ["-n", 6, "--epoch", 2, "--chunk_size", 4, "--format", "llava", "-o", tmp_path / "ranks"]
    done = call([*torchrun(), *command])
    assert done.returncode == 0 and HAS_HOST, done.stderr
    write(photos, tmp_path / "one", "llava")
    assert tree(tmp_path / "one") == tree(tmp_path / "ranks")


@pytest.mark.parametrize("format", ["llava", "webdataset", "verl", "trl"])
def test_a_finished_export_is_mended_where_files_are_missing_or_damaged(photos, tmp_path, caplog, format):
    pytest.importorskip({"verl": "pyarrow", "trl": "pyarrow"}.get(format, "PIL"))
    write(photos, tmp_path / "out", format)
    whole = tree(tmp_path / "out")
    first, second, *_ = sorted(
        path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".tar", ".parquet")
    )
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    (tmp_path / "out" / ("vgift.json" if format == "llava" else "export.json")).unlink()
    assert "6 rotation" in write(photos, tmp_path / "out", format)
    assert "2 files are missing or damaged and are made again" in caplog.text
    assert tree(tmp_path / "out") == whole
    assert write(photos, tmp_path / "out", format).endswith("complete already, nothing to do")


def test_a_damaged_result_is_named_with_its_cure(photos, tmp_path):
    write(photos, tmp_path / "out", "llava")
    (tmp_path / "out" / "export.json").write_text("{")
    with pytest.raises(ConfigError, match=r"export\.json: is damaged .* remove it, and the export is completed again"):
        write(photos, tmp_path / "out", "llava")


def test_nothing_is_written_through_a_link_that_leads_out(photos, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out" / ".parts").mkdir(parents=True)
    (tmp_path / "out" / "images").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"leads out of .*out over a link"):
        write(photos, tmp_path / "out", "llava")
    assert not list(elsewhere.iterdir())


def test_published_samples_are_written_under_their_own_names(release, tmp_path):
    root, metadata, records = release
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(records))
    flags = {"ssl_replay": str(metadata)}
    told = export(flags, str(root), str(tmp_path / "out"), "llava", data_path=str(path), workers=1)
    assert "30 published" in told
    written = json.loads((tmp_path / "out" / "vgift.json").read_text())
    assert written == records[16:]
    for record in written:
        assert Image.open(tmp_path / "out" / record["image"]).format == "JPEG"
    webdataset = pytest.importorskip("webdataset")
    export(flags, str(root), str(tmp_path / "tar"), "webdataset", data_path=str(path), workers=1)
    shards = list(map(str, (tmp_path / "tar" / "published").glob("*.tar")))
    assert len(list(webdataset.WebDataset(shards, shardshuffle=False))) == 30


def test_the_ratio_counts_records_else_images(photos, data_path, tmp_path):
    flags = {"ssl_tasks": "rotation", "ssl_ratio": 0.5}
    told = export(flags, str(photos), str(tmp_path / "a"), "llava", data_path=str(data_path), workers=1)
    assert ": 8 rotation (" in told  # of 16 records
    assert ": 2 rotation (" in export(flags, str(photos), str(tmp_path / "b"), "llava", workers=1)  # of 5 images


def test_jpeg_is_there_for_those_who_want_it(photos, tmp_path):
    write(photos, tmp_path / "out", "llava", jpeg_quality=90)
    record = json.loads((tmp_path / "out" / "vgift.json").read_text())[0]
    assert record["image"].endswith(".jpg") and Image.open(tmp_path / "out" / record["image"]).format == "JPEG"


def test_other_settings_and_other_files_are_refused(photos, tmp_path):
    write(photos, tmp_path / "out", "llava")
    before = tree(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"other settings:\n  epoch: begun with 2, now 3\n.* or another -o"):
        write(photos, tmp_path / "out", "llava", epoch=3)
    assert tree(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        write(photos, tmp_path / "mine", "llava")


def test_all_mistakes_at_once(photos, tmp_path):
    with pytest.raises(ConfigError, match=r"4 mistakes.*\n.*--format tfrecord.*\n.*101.*\n.*-n 0.*\n.*--workers 0"):
        write(photos, tmp_path / "out", "tfrecord", n=0, jpeg_quality=101, workers=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--ssl_tasks is missing"):
        export({}, str(photos), str(tmp_path / "out"), "llava")
