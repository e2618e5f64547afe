import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.views import (
    View,
    ViewPlan,
    ViewScores,
    batch_views,
    merged_labels,
    merged_scores,
    pixels,
    regroup,
)

WHOLE = (0.0, 0.0, 1.0, 1.0)


def scored(scores, survivors=None, box=WHOLE, flip=False):
    scores = torch.as_tensor(scores)
    survivors = torch.arange(len(scores)) if survivors is None else torch.tensor(survivors)
    return ViewScores(View(box, (32, 32), flip), scores, survivors)


def test_the_released_protocol_is_one_stretched_view():
    assert ViewPlan(768)(480, 640) == [[View(WHOLE, (768, 768))]]


def test_an_image_can_keep_its_aspect():
    # 768 * sqrt(2) = 1086 -> 34 * 32, 768 / sqrt(2) = 543 -> 17 * 32
    assert ViewPlan(768, keep_aspect=True)(400, 200) == [[View(WHOLE, (1088, 544))]]
    assert ViewPlan(768, keep_aspect=True)(300, 300) == [[View(WHOLE, (768, 768))]]


def test_scales_and_mirrored_views_are_separate_groups():
    groups = ViewPlan(64, scales=(0.5, 1.0), flip=True)(10, 10)
    assert groups == [
        [View(WHOLE, (side, side), flip)] for side in (32, 64) for flip in (False, True)
    ]


def test_windows_cover_the_image_evenly():
    # Squares of half the height; across 2 heights they are quarters of the width.
    whole, windows = ViewPlan(64, window=0.5, overlap=0.5)(100, 200)
    assert whole == [View(WHOLE, (64, 64))]
    rows = [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)]
    columns = [(i / 8, i / 8 + 0.25) for i in range(7)]
    boxes = [(t, left, b, right) for t, b in rows for left, right in columns]
    assert [w.box for w in windows] == boxes


@pytest.mark.parametrize("window", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_windows_leave_no_pixel_out(window, overlap):
    for image, output in (((640, 1920), (21, 63)), ((640, 1280), (501, 751)), ((7, 9), (7, 9))):
        _, windows = ViewPlan(64, window=window, overlap=overlap)(*image)
        seen = torch.zeros(output)
        for view in windows:
            top, left, bottom, right = pixels(view.box, output)
            seen[top:bottom, left:right] += 1
        assert seen.min() >= 1


def test_a_window_as_long_as_the_image_is_one_window():
    _, windows = ViewPlan(64, window=1.0)(100, 100)
    assert [w.box for w in windows] == [WHOLE]


def test_a_view_is_cropped_scaled_and_mirrored():
    image = torch.arange(16.0).view(1, 4, 4).expand(3, 4, 4)
    crop = View((0.5, 0.0, 1.0, 0.5), (2, 2), flip=True).crop(image)
    assert crop[0, 0].tolist() == [[9, 8], [13, 12]]


def test_batches_hold_views_of_one_size_in_their_order():
    plan = ViewPlan(64, scales=(0.5, 1.0), window=1.0, overlap=0.0)(
        32, 64
    )  # whole, 2 windows, twice
    assert [len(group) for group in plan] == [1, 2, 1, 2]
    batches = batch_views([plan, plan], batch_size=2)
    views = [view for group in plan for view in group]
    assert [view for batch in batches for view in batch.views] == views + views
    assert [i for batch in batches for i in batch.images] == [0] * 6 + [1] * 6
    sizes = [[view.size[0] for view in batch.views] for batch in batches]
    assert sizes == [[32, 32], [32], [64, 64], [64]] * 2
    numbers = list(range(6))
    assert regroup(plan, numbers) == [[0], [1, 2], [3], [4, 5]]


def test_windows_are_averaged_by_hand():
    # Two windows of a 1×4 image overlap on its middle two pixels; the whole image is averaged in.
    windows = [
        scored([[[0.4, 0.4, 0.4]]], box=(0, 0, 1, 0.75)),
        scored([[[0.8, 0.8, 0.8]]], box=(0, 0.25, 1, 1)),
    ]
    whole = [scored([[[0.0, 0.0, 0.0, 1.0]]])]
    ((classes, scores),) = merged_scores([windows, whole], torch.tensor([0]), (1, 4))
    assert classes.tolist() == [0]
    assert scores.flatten().tolist() == pytest.approx([0.2, 0.3, 0.3, 0.9])


def test_mirrored_scores_are_turned_back():
    groups = [[scored([[[0.0, 1.0]]], flip=True)]]
    ((_, scores),) = merged_scores(groups, torch.tensor([0]), (1, 2))
    assert scores.flatten().tolist() == [1.0, 0.0]


def test_rejected_classes_score_zero():
    first, second = scored([[[0.2]], [[0.6]]], [0, 2]), scored([[[0.4]]], [3])
    ((_, scores),) = merged_scores([[first], [second]], torch.arange(4), (1, 1))
    assert scores.flatten().tolist() == pytest.approx([0.1, 0.0, 0.3, 0.2])
    assert merged_labels([[first], [second]], (2, 2)).tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("max_elements", [1, 7 * 9 * 2, 1 << 24])
def test_labels_do_not_depend_on_the_chunk(max_elements):
    torch.manual_seed(0)
    scores = torch.rand(20, 3, 4, requires_grad=True)  # a user may forget no_grad
    expected = F.interpolate(scores[None], size=(7, 9), mode="bilinear", align_corners=False)
    labels = merged_labels([[scored(scores)]], (7, 9), max_elements)
    assert torch.equal(labels, expected[0].argmax(0))
    # Of their own size, since torch rounds ones otherwise, and by how many classes there are.
    same = merged_labels([[scored(torch.ones(20, 7, 9))]], (7, 9), max_elements)
    assert same.unique().tolist() == [0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"resolution": 100}, "RESOLUTION 100 .* multiple of 32"),
        ({"resolution": 64, "scales": ()}, "SCALES"),
        ({"resolution": 64, "window": 1.5}, "WINDOW 1.5"),
        ({"resolution": 64, "overlap": 1.0}, "OVERLAP 1.0"),
    ],
)
def test_what_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewPlan(**settings)
