"""The palette, and the colours that classes have in an image."""

import numpy as np

from sed_d2 import colours as module
from sed_d2.colours import MIN_DISTANCE, image_colours, oklab, palette
from sed_d2.visualization import paint


def colour_distance(a, b):
    a, b = oklab(np.array([a, b], np.uint8))
    return np.linalg.norm(a - b)


def test_oklab_of_known_colours():
    # Red's coordinates are those of the definition's author.
    np.testing.assert_allclose(
        oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]])),
        [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]],
        atol=1e-4,
    )


def test_a_class_has_the_same_colour_in_every_vocabulary():
    np.testing.assert_array_equal(palette(847)[:20], palette(20))
    assert palette(1).shape == (1, 3)


def test_colours_differ():
    assert len(np.unique(palette(847), axis=0)) == 847
    lab = oklab(palette(20))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(20)
    # A difference of 0.02 is just visible.
    assert distance.min() > 0.08


def test_more_classes_than_colours_start_over():
    colours = palette(5000)
    period = next(i for i in range(1, 5000) if (colours[i] == colours[0]).all())
    np.testing.assert_array_equal(colours[period : period + 9], colours[:9])


def test_a_class_has_its_colour_in_the_image():
    image = np.full((4, 6, 3), (160, 112, 64), np.uint8)
    image[:, 4:] = (128, 48, 176)
    labels = np.where(np.arange(6) < 4, 2, 0) * np.ones((4, 1), int)
    colours = image_colours(image, labels, 4)
    assert colours.dtype == np.uint8
    # The grid of colours has steps of 16.
    np.testing.assert_allclose(colours[2], (160, 112, 64), atol=8)
    np.testing.assert_allclose(colours[0], (128, 48, 176), atol=8)
    np.testing.assert_array_equal(colours[[1, 3]], 0)


def test_dark_stripes_do_not_dull_a_colour_and_glints_do_not_brighten_it():
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2, :4] = (239, 207, 32)  # yellow stripes on black
    image[:, 4:] = 32
    image[0, 4:] = 255  # an eighth of the dark class
    colours = image_colours(image, np.arange(8) // 4 * np.ones((8, 1), int), 2).astype(int)
    np.testing.assert_allclose(colours[0], (239, 207, 32), atol=8)
    # All pixels of the dark class reach its median, 32; their mean is 60.
    assert colours[1].max() < 100


def test_classes_that_look_alike_get_colours_that_differ():
    image = np.full((1, 60, 3), 128, np.uint8)
    image[:, 30:] = 130
    labels = np.repeat(np.arange(3), (20, 30, 10))[None]
    colours = image_colours(image, labels, 3)
    # The largest class keeps its own colour.
    np.testing.assert_allclose(colours[1], 129, atol=8)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert colour_distance(colours[a], colours[b]) >= MIN_DISTANCE


def test_hundreds_of_classes_that_look_alike_still_differ():
    labels = np.arange(600).reshape(20, 30)
    colours = image_colours(np.full((20, 30, 3), 128, np.uint8), labels, 600)
    assert len(np.unique(colours, axis=0)) == 600


def test_large_images_are_read_in_bands(monkeypatch):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (23, 17, 3)).astype(np.uint8)
    labels = random.randint(0, 5, (23, 17))
    colours = image_colours(image, labels, 5)
    painted = np.asarray(paint(image, labels, colours))
    monkeypatch.setattr(module, "BAND_PIXELS", 40)  # two rows
    np.testing.assert_array_equal(image_colours(image, labels, 5), colours)
    np.testing.assert_array_equal(np.asarray(paint(image, labels, colours)), painted)
