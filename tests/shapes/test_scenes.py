"""Drawing: what a scene shows where its labels say so."""

import numpy as np
import pytest

from sed_d2.shapes.scenes import draw_scene, scene_rng
from sed_d2.shapes.words import CLASSES

HUES = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


@pytest.mark.parametrize("colour", HUES)
def test_labels_lie_on_the_object_of_that_colour(colour):
    square = CLASSES.index(f"{colour} square")
    image, labels = draw_scene(scene_rng(0), 96, [7], [square], (30, 30), margin=0.5)
    inside, outside = image[labels == square] / 255, image[labels == 7] / 255
    assert inside.mean(0).argmax() == np.argmax(HUES[colour])
    assert np.ptp(inside.mean(0)) > 0.4  # a vivid colour
    assert np.ptp(outside.mean(0)) < 0.15  # on snow
    # A square of half diagonal 1.15 x 30 has 2 x 34.5^2 pixels, less its squeeze of up to 0.8.
    assert 0.79 * 2380 < len(inside) < 1.01 * 2380


def test_the_hole_of_a_ring_is_background():
    ring = CLASSES.index("blue ring")
    _, labels = draw_scene(scene_rng(1), 96, [0], [ring], (36, 36), margin=0.5)
    assert labels[48, 48] == 0
    assert (labels == ring).any()


def test_striped_objects_have_dark_stripes():
    spread = {}
    for name in ("white square", "white striped square"):
        class_id = CLASSES.index(name)
        image, labels = draw_scene(scene_rng(2), 96, [0], [class_id], (40, 40), margin=0.5)
        spread[name] = image[labels == class_id].std()
    assert spread["white striped square"] > 2 * spread["white square"]


def test_objects_stay_at_least_60_percent_visible():
    circle, square = CLASSES.index("orange circle"), CLASSES.index("red square")
    for seed in range(10):
        _, labels = draw_scene(scene_rng(seed), 128, [0], [circle, square], (24, 24), margin=0.2)
        # An orange circle of radius 0.95 x 24, squeezed by at least 0.8.
        assert np.count_nonzero(labels == circle) >= 0.6 * 0.79 * np.pi * 22.8**2
