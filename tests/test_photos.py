"""Where photographs come from: how a file is opened, which of a folder and of records are taken."""

import errno
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from vgift_plugin.data import photo
from vgift_plugin.data.photo import open_photo, photo_size
from vgift_plugin.data.photos import from_folder, from_records
from vgift_plugin.data.records import read_records
from vgift_plugin.errors import ConfigError, PhotoReadError, UnsuitableImage
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.tasks.drawing import test_card as card

EXIF_ORIENTATION = 0x0112
# How the stored pixels of each orientation follow from the upright picture (EXIF 2.32, 4.6.4).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.asarray(card((60, 40)))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(tmp_path / "x.png", exif=exif)
    assert (np.asarray(open_photo(str(tmp_path / "x.png"))) == upright).all()


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("CMYK", "jpg"), ("L", "jpg"), ("P", "png"), ("P", "gif"), ("RGBA", "png"), ("LA", "png"), ("1", "png")],
)
def test_other_modes_become_rgb_as_in_the_host(tmp_path, mode, suffix):
    path = tmp_path / f"x.{suffix}"
    card((64, 48)).convert("RGB" if mode in ("RGBA", "LA") else mode).convert(mode).save(path)
    photo = open_photo(str(path))
    assert photo.mode == "RGB" and photo.size == (64, 48)
    assert photo.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (50, 50), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert open_photo(str(tmp_path / "x.gif")).getpixel((5, 5)) == (255, 0, 0)


def broken(folder, kind):
    path = folder / f"{kind}.jpg"
    if kind == "truncated":
        card((300, 200)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "sixteen":
        Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "sixteen.png")
        path = folder / "sixteen.png"
    elif kind == "float":
        Image.fromarray(np.zeros((40, 40), np.float32)).save(folder / "float.tif")
        path = folder / "float.tif"
    elif kind == "bomb":  # 400 million pixels announced by a header of a few bytes
        import struct
        import zlib

        def chunk(tag, data):
            return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

        header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
        path = folder / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    elif kind == "fifo":  # opening one waits for a writer
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind in ("eps", "icns"):  # formats that Pillow knows, under another name
        card((64, 64)).save(path, kind)
    elif kind == "forbidden":
        path.symlink_to(path)  # a link to itself cannot be opened by anyone, root included
    return str(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing file"),
        ("truncated", "unreadable"),
        ("text", "unreadable"),
        ("empty", "unreadable"),
        ("forbidden", "unreadable"),
        ("folder", "not a file"),
        ("fifo", "not a file"),
        ("device", "not a file"),
        ("eps", "unreadable"),
        ("icns", "unreadable"),
        ("sixteen", "more than 8 bits"),
        ("float", "more than 8 bits"),
        ("bomb", "too many pixels"),
    ],
)
def test_bad_files_have_a_reason(tmp_path, kind, reason):
    with pytest.raises(UnsuitableImage) as caught:
        open_photo(broken(tmp_path, kind))
    assert caught.value.reason == reason


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_torn_file_is_unreadable_whatever_the_host_set(tmp_path, monkeypatch, suffix):
    """LLaVA-NeXT sets LOAD_TRUNCATED_IMAGES on import; many set MAX_IMAGE_PIXELS."""
    path = tmp_path / f"x.{suffix}"
    card((300, 200)).save(path)
    whole = open_photo(str(path)).tobytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_photo(str(path)).tobytes() == whole and photo_size(str(path)) == (300, 200)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnsuitableImage, match="unreadable"):
        open_photo(str(path))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS == 100


def test_settings_of_the_host_are_put_back_after_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    card((300, 200)).save(tmp_path / "x.png")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: open_photo(str(tmp_path / "x.png")).tobytes(), range(64)))) == 1
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_header_tells_the_size_of_the_upright_photograph(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[EXIF_ORIENTATION] = orientation
        card((60, 40)).save(tmp_path / "x.jpg", exif=exif)
        for upright in (True, False):
            size = photo_size(str(tmp_path / "x.jpg"), upright)
            assert size == open_photo(str(tmp_path / "x.jpg"), upright).size


def test_large_pictures_are_passed_over_unless_a_reduced_size_is_enough(tmp_path):
    for suffix in ("jpg", "png"):
        card((640, 480)).save(tmp_path / f"x.{suffix}")
    assert open_photo(str(tmp_path / "x.jpg"), longest_px=160, max_pixels=20_000).size == (160, 120)
    for suffix, longest_px in (("jpg", None), ("png", 160)):
        with pytest.raises(UnsuitableImage, match="too many pixels"):
            open_photo(str(tmp_path / f"x.{suffix}"), longest_px=longest_px, max_pixels=20_000)


@pytest.fixture
def failing(monkeypatch):
    """Returns a function that lets the next `times` reads of photographs fail with an error of the system."""
    left = []

    def read(self, *size):
        if left:
            raise left.pop()
        return super(Reader, self).read(*size)

    Reader = type("Reader", (io.BufferedReader,), {"read": read})
    monkeypatch.setattr(photo, "open", lambda path, mode: Reader(io.FileIO(path)), raising=False)
    monkeypatch.setattr(photo, "PAUSES_S", (0, 0, 0))
    return lambda number, times: left.extend([OSError(number, os.strerror(number))] * times)


SYSTEM = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", SYSTEM)
def test_an_error_of_the_system_is_tried_again_and_never_taken_for_a_broken_picture(tmp_path, failing, number):
    path = tmp_path / "x.jpg"
    card((60, 40)).save(path)
    whole = open_photo(str(path)).tobytes()
    failing(number, 3)
    assert open_photo(str(path)).tobytes() == whole
    failing(number, 4)
    with pytest.raises(PhotoReadError, match=f"{path}: {os.strerror(number)}, 4 times"):
        open_photo(str(path))


def test_an_error_of_the_system_ends_a_run_and_names_the_path(tmp_path, failing):
    card((60, 40)).save(tmp_path / "x.jpg")
    flags = VgiftFlags(ssl_tasks="rotation")
    (stream,) = streams(flags, flags.tasks(), None, str(tmp_path), None)
    failing(errno.EIO, 99)
    with pytest.raises(PhotoReadError, match=r"x\.jpg: Input/output error"):
        stream(0, 0)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, OverflowError, RecursionError, AttributeError])
def test_whatever_pillow_raises_on_a_file_is_the_fault_of_the_file(tmp_path, monkeypatch, error):
    card((60, 40)).save(tmp_path / "x.jpg")

    def fail(*_, **__):
        raise error("from a decoder")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnsuitableImage, match="unreadable"):
        open_photo(str(tmp_path / "x.jpg"))


@pytest.fixture
def tree(tmp_path):
    """coco/a.jpg, coco/deep/b.JPEG, vg/ç.png, a text file, a folder called x.jpg, and a link back to the top."""
    for name in ("coco/a.jpg", "coco/deep/b.JPEG", "vg/ç.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        card((40, 30)).save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "vg" / "loop").symlink_to(tmp_path)
    return tmp_path


def test_a_folder_is_searched_recursively_in_a_fixed_order(tree):
    source = from_folder(str(tree))
    assert [os.path.relpath(source.path(k), tree) for k in range(len(source))] == [
        "coco/a.jpg",
        "coco/deep/b.JPEG",
        "vg/ç.png",
    ]
    assert source.open(2).size == (40, 30)


def test_links_to_folders_are_followed(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "coco").symlink_to(tree / "coco")
    assert len(from_folder(str(other))) == 2


def test_links_that_lead_out_are_followed_and_told_once(tree, tmp_path_factory, caplog):
    other = tmp_path_factory.mktemp("other")
    (other / "coco").symlink_to(tree / "coco")
    (other / "one.png").symlink_to(tree / "vg" / "ç.png")
    (other / "self").symlink_to(other)
    with caplog.at_level(logging.INFO, "vgift_plugin"):
        assert len(from_folder(str(other))) == 3
    (told,) = [message for message in caplog.messages if "lead out" in message]
    assert "2 links lead out of this folder and are followed, such as" in told


def test_a_folder_that_cannot_be_read_is_an_error(tree, monkeypatch):
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(ConfigError, match=r"coco/deep: Permission denied; its photographs would be left out"):
        from_folder(str(tree))


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no image in .*\.jpg"):
        from_folder(str(tmp_path))
    with pytest.raises(ConfigError, match="is not a folder"):
        from_folder(str(tmp_path / "absent"))


def test_records_give_each_image_once(tree):
    images = ["coco/a.jpg", None, "vg/ç.png", "coco/a.jpg"]
    records = [{"image": name} if name else {"conversations": []} for name in images]
    source = from_records(records, str(tree))
    assert [source.path(k) for k in range(len(source))] == [str(tree / "coco/a.jpg"), str(tree / "vg/ç.png")]


def test_records_without_images_are_an_error_with_its_cure():
    with pytest.raises(ConfigError, match="--ssl_image_folder"):
        from_records([{"conversations": []}], "")


def test_a_list_of_one_picture_is_a_picture_and_of_several_none():
    """Forks write records so; which of several pictures a sample should be made of is not for us to guess."""
    records = [{"image": ["a.jpg"]}, {"image": "a.jpg"}, {"image": ["b.jpg", "c.jpg"]}, {"image": "d.jpg"}]
    source = from_records(records, "root")
    assert [source.path(k) for k in range(len(source))] == [os.path.join("root", name) for name in ("a.jpg", "d.jpg")]


def test_a_fingerprint_is_of_names_and_order_not_of_the_folder(tmp_path):
    for folder, names in (("one", "ab"), ("two", "ab"), ("three", "ac")):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (2, 2)).save(tmp_path / folder / f"{name}.png")
    one, two, three = (from_folder(str(tmp_path / folder)).fingerprint() for folder in ("one", "two", "three"))
    assert one == two != three and one.startswith("2 (")


@pytest.mark.parametrize(
    ("longest_px", "size"), [(None, (640, 480)), (640, (640, 480)), (321, (640, 480)), (320, (320, 240))]
)
def test_jpeg_is_decoded_no_larger_than_needed(tmp_path, longest_px, size):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    card((640, 480)).save(path, exif=exif)
    assert open_photo(str(path), longest_px=longest_px).size == size[::-1]  # turned upright
    assert open_photo(str(path), upright=False, longest_px=longest_px).size == size
    card((640, 480)).save(tmp_path / "a.png")
    assert open_photo(str(tmp_path / "a.png"), longest_px=longest_px).size == (640, 480)


@pytest.mark.parametrize(
    ("text", "told"), [("{}", "is not a list of LLaVA records"), ("[1]", "is not a list"), ("[]", "holds no record")]
)
def test_what_is_no_list_of_records_is_told(tmp_path, text, told):
    (tmp_path / "mix.json").write_text(text)
    with pytest.raises(ConfigError, match=f"--data_path .*mix.json: {told}"):
        read_records(str(tmp_path / "mix.json"))
