"""Pictures: panels, overlay, legend, label map, and how they are written."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from sed_d2 import Prediction, Vocabulary
from sed_d2.colours import image_colours, palette
from sed_d2.data.files import read_labels
from sed_d2.predictor import FoundClass
from sed_d2.visualization import (
    BACKGROUND,
    MAX_SIDE,
    MIN_TEXT,
    borders,
    draw_legend,
    draw_overlay,
    draw_panels,
    label_map,
    one_line,
    paint,
    percent,
    save_picture,
    shortened,
)


def classes_found(names):
    return [FoundClass(i, name, 1 / len(names)) for i, name in enumerate(names)]


def legend_of(names, width, **options):
    return draw_legend(classes_found(names), palette(len(names)), width, **options)


def test_panels_show_image_labels_and_legend_side_by_side():
    image = np.full((100, 120, 3), (160, 112, 64), np.uint8)
    image[:, 60:] = (128, 48, 176)
    labels = (np.arange(120) >= 60) * np.full((100, 1), 2)
    vocabulary = Vocabulary.from_names(["wood", "sky", "purple circle"])
    picture = np.asarray(draw_panels(image, Prediction(labels, vocabulary)))
    assert picture.shape[0] == 100
    np.testing.assert_array_equal(picture[:, :120], image)
    colours = image_colours(image, labels, 3)
    start = 120 + MIN_TEXT // 2
    panel, legend = picture[:, start : start + 120], picture[:, start + 120 :]
    np.testing.assert_array_equal(panel[:, :60], np.broadcast_to(colours[0], (100, 60, 3)))
    np.testing.assert_array_equal(panel[:, 61:], np.broadcast_to(colours[2], (100, 59, 3)))
    assert (panel[:, 60] == BACKGROUND).all()
    for colour, shown in zip(colours, (True, False, True), strict=True):
        assert (legend == colour).all(axis=-1).any() == shown


def test_panels_take_the_colours_of_the_caller():
    prediction = Prediction(np.zeros((40, 50), int), Vocabulary.from_names(["cat"]))
    picture = draw_panels(np.zeros((40, 50, 3), np.uint8), prediction, colours=palette(1))
    pixel = picture.getpixel((50 + MIN_TEXT // 2 + 25, 20))
    assert pixel == tuple(palette(1)[0].tolist())


@pytest.mark.parametrize(
    ("shape", "side", "panel"),
    [
        ((30, 40), None, (40, 30)),
        ((30, 40), 80, (80, 60)),
        ((2, 3 * MAX_SIDE), None, (MAX_SIDE, 1)),
    ],
)
def test_panels_are_as_large_as_asked_for(shape, side, panel):
    prediction = Prediction(np.zeros(shape, int), Vocabulary.from_names(["cat"]))
    picture = np.asarray(draw_panels(np.zeros((*shape, 3), np.uint8), prediction, side=side))
    drawn = (picture != BACKGROUND).any(axis=-1)
    assert drawn[0].argmin() == panel[0]
    assert drawn[:, 0].sum() == panel[1]


def test_the_legend_of_panels_gets_the_columns_that_its_height_needs():
    labels = np.arange(100).reshape(10, 10).repeat(20, 0).repeat(20, 1)
    vocabulary = Vocabulary.from_names([f"class {i}" for i in range(100)])
    image = np.full((200, 200, 3), 99, np.uint8)
    few, many = (
        draw_panels(image, Prediction(labels, vocabulary), max_entries=count) for count in (3, 24)
    )
    assert few.height == many.height == 200
    assert many.width - 400 > 2 * (few.width - 400)  # three columns


def test_panels_of_a_small_image_grow_downwards():
    labels = np.arange(24 * 24).reshape(24, 24) // 24
    vocabulary = Vocabulary.from_names([f"class {i}" for i in range(24)])
    for kind in (np.uint8, np.int64):  # a label map that was read from a file has narrow numbers
        prediction = Prediction(labels.astype(kind), vocabulary)
        picture = draw_panels(np.full((24, 24, 3), 99, np.uint8), prediction)
        assert picture.width < 3 * picture.height


def test_panels_of_image_and_labels_of_two_sizes_are_an_error():
    prediction = Prediction(np.zeros((4, 5), int), Vocabulary.from_names(["cat"]))
    with pytest.raises(ValueError, match="give one label per pixel"):
        draw_panels(np.zeros((4, 4, 3), np.uint8), prediction)


def test_mid_grey_shows_the_colour_and_shade_shows_through():
    labels = np.zeros((2, 3), int)
    colours = np.array([[200, 100, 50]], np.uint8)
    image = np.full((2, 3, 3), 0, np.uint8)
    image[:, 1] = (127, 128, 127)
    image[:, 2] = 255
    painted = np.asarray(paint(image, labels, colours, opacity=0.6))
    np.testing.assert_array_equal(painted[0, 0], [120, 60, 30])  # × 0.6
    np.testing.assert_array_equal(painted[0, 1], [200, 100, 50])
    np.testing.assert_array_equal(painted[0, 2], [255, 140, 70])  # × 1.4
    np.testing.assert_array_equal(painted[0], painted[1])


def test_segments_are_parted_by_white_lines():
    labels = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    expected = [[0, 0, 1], [0, 0, 1], [1, 1, 1]]
    np.testing.assert_array_equal(borders(labels), np.array(expected, bool))
    painted = np.asarray(paint(np.zeros((3, 3, 3), np.uint8), labels, palette(3)))
    np.testing.assert_array_equal((painted == 255).all(axis=-1), np.array(expected, bool))


def test_wide_lines_do_not_reach_round_the_image():
    labels = np.repeat([[0] * 9 + [1] * 9], 5, axis=0)
    columns = borders(labels, 3).all(axis=0)
    assert columns.nonzero()[0].tolist() == [8, 9, 10]


def test_image_and_labels_of_two_sizes_are_an_error():
    with pytest.raises(ValueError, match="give one label per pixel"):
        paint(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int), palette(1))


def test_overlay_has_the_image_above_and_the_colours_in_the_legend():
    labels = np.zeros((100, 300), int)
    labels[:, 200:] = 2
    vocabulary = Vocabulary.from_names(["cat", "dog", "sky"])
    overlay = draw_overlay(np.full((100, 300, 3), 127, np.uint8), Prediction(labels, vocabulary))
    assert overlay.width == 300 and overlay.height > 100
    pixels = np.asarray(overlay).astype(int)
    for index, name in enumerate(vocabulary.names):
        found = np.abs(pixels - palette(3)[index]).max(axis=-1) <= 1
        assert found[:100].any() == found[100:].any() == (name != "dog")


def test_overlay_takes_the_colours_of_the_caller():
    image = np.full((20, 30, 3), 127, np.uint8)
    prediction = Prediction(np.zeros((20, 30), int), Vocabulary.from_names(["cat"]))
    overlay = draw_overlay(image, prediction, colours=np.array([[10, 20, 200]], np.uint8))
    assert overlay.getpixel((overlay.width // 2, 10)) == (10, 20, 200)


def test_a_narrow_image_stands_in_the_middle_of_its_legend():
    prediction = Prediction(np.zeros((50, 10), int), Vocabulary.from_names(["cat"]))
    overlay = draw_overlay(np.full((50, 10, 3), 127, np.uint8), prediction)
    painted = np.flatnonzero((np.asarray(overlay)[25] != BACKGROUND).any(axis=-1))
    assert len(painted) == 10
    assert abs(painted.mean() - (overlay.width - 1) / 2) <= 1


@pytest.mark.parametrize("width", [40, 400, 1600])
@pytest.mark.parametrize(
    "names",
    [
        ["cat"],
        ["a very long name of a class that goes on and on " * 9, "sky"],
        [f"class number {i}" for i in range(300)],
        ["猫", "дом", "😀 cat", "b\nc", "ärger"],
    ],
)
def test_legends_stay_within_their_margins(names, width):
    legend = legend_of(names, width, text_size=14)
    assert legend.width == max(width, 16 * 14)
    assert legend.height < 24 * 23 + 30
    drawn = (np.asarray(legend) != BACKGROUND).any(axis=-1)
    assert drawn.any()
    assert not drawn[:, :13].any() and not drawn[:, -13:].any()
    assert not drawn[:3].any() and not drawn[-3:].any()


def test_many_classes_are_summed_up():
    legend = np.asarray(legend_of([f"class {i}" for i in range(30)], 100, max_entries=5))
    colours = {tuple(colour) for colour in legend.reshape(-1, 3).tolist()}
    shown = [tuple(colour) in colours for colour in palette(30).tolist()]
    assert shown == [True] * 4 + [False] * 26
    assert legend.shape[0] == legend_of([f"class {i}" for i in range(5)], 100).height


def test_wide_legends_have_columns():
    names = [f"class {i}" for i in range(12)]
    assert legend_of(names, 2000).height < legend_of(names, 100).height / 4


def test_texts():
    assert [percent(x) for x in (0.12345, 1, 0.0004, 0)] == [
        "12.3 %",
        "100.0 %",
        "< 0.1 %",
        "0.0 %",
    ]
    assert one_line(" red\n\tcar\x00 ") == "red car"
    font = ImageFont.load_default(14)
    assert shortened("cat", font, 1000) == "cat"
    short = shortened("a long name", font, font.getlength("a lon…"))
    assert short == "a lon…"
    assert shortened("a long name", font, 0) == "…"


@pytest.mark.parametrize(
    ("classes", "dtype"), [(256, np.uint8), (257, np.uint16), (847, np.uint16)]
)
def test_label_maps_hold_the_indices(tmp_path, classes, dtype):
    labels = np.arange(12).reshape(3, 4)
    labels[2, 3] = classes - 1
    path = tmp_path / "labels.png"
    save_picture(label_map(labels, classes), path)
    with Image.open(path) as picture:
        read = np.asarray(picture)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, labels)
    np.testing.assert_array_equal(read_labels(path), labels)


def test_label_maps_show_the_colours_of_the_overlay():
    picture = label_map(np.array([[0, 1], [2, 1]]), 3).convert("RGB")
    np.testing.assert_array_equal(np.asarray(picture)[1, 0], palette(3)[2])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"picture{suffix}"
    save_picture(Image.new("RGB", (5, 4), "red"), path)
    assert Image.open(path).size == (5, 4)
    before = path.read_bytes()

    def cut_off(self, file, kind, **options):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(OSError, match="disk full"):
        save_picture(Image.new("RGB", (7, 7)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
