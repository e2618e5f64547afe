"""The Python interface: forms of images and vocabularies, sizes, weights, errors."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from sed_d2 import Vocabulary
from sed_d2.predictor import FoundClass, OpenVocabPredictor, Prediction

NAMES = ["cat", "windowpane, window", "sky"]


@pytest.fixture
def picture():
    """An image (90, 130, 3), larger than what the tiny model is shown."""
    return np.random.RandomState(0).randint(0, 256, (90, 130, 3), dtype=np.uint8)


@pytest.fixture
def predictor(tiny_cfg):
    torch.manual_seed(0)
    return OpenVocabPredictor(tiny_cfg())


def test_it_answers_as_the_evaluation_does(predictor, tiny_cfg, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    mapper = DatasetMapper(tiny_cfg(), is_train=False)
    record = mapper({"file_name": str(tmp_path / "picture.png"), "height": 90, "width": 130})
    assert min(record["image"].shape[1:]) == 64

    prediction = predictor(picture, NAMES, scores=True)
    with torch.no_grad():
        expected = predictor.model([record], NAMES)[0]["sem_seg"].numpy()
    assert prediction.scores.shape == (3, 90, 130)
    np.testing.assert_array_equal(prediction.scores, expected)
    np.testing.assert_array_equal(prediction.labels, expected.argmax(0))


def test_labels_alone_are_those_of_the_scores(predictor, picture):
    prediction = predictor(picture, NAMES)
    assert prediction.scores is None
    assert prediction.labels.shape == (90, 130) and prediction.labels.dtype == np.int64
    assert len(np.unique(prediction.labels)) > 1
    np.testing.assert_array_equal(prediction.labels, predictor(picture, NAMES, scores=True).labels)


def test_a_path_a_pillow_image_and_an_array_are_alike(predictor, picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = predictor(picture, NAMES).labels
    for image in (path, str(path), Image.fromarray(picture)):
        np.testing.assert_array_equal(predictor(image, NAMES).labels, expected)


def test_exif_orientation_is_followed(predictor, picture, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(picture).save(path, exif=exif)
    upright = np.rot90(picture, -1).copy()
    expected = predictor(upright, NAMES).labels
    for image in (path, Image.open(path)):
        np.testing.assert_array_equal(predictor(image, NAMES).labels, expected)


def test_grey_and_transparent_pillow_images_are_taken(predictor, picture):
    for mode in ("L", "RGBA", "P"):
        assert predictor(Image.fromarray(picture).convert(mode), NAMES).labels.shape == (90, 130)


def test_equal_vocabularies_are_embedded_once(predictor, picture, monkeypatch):
    embedded = []
    encoder = predictor.model.text_encoder
    embed = encoder._embed_classes
    monkeypatch.setattr(
        encoder, "_embed_classes", lambda classes: embedded.append(tuple(classes)) or embed(classes)
    )
    for same in (NAMES, "cat, windowpane|window, sky", Vocabulary.from_names(NAMES), iter(NAMES)):
        prediction = predictor(picture, same)
        assert prediction.vocabulary.names == tuple(NAMES)
    assert embedded == [(("cat",), ("windowpane", "window"), ("sky",))]
    assert predictor(picture, ["cat"]).vocabulary.names == ("cat",)
    predictor(picture, NAMES)  # the embeddings of several vocabularies are kept
    assert len(embedded) == 2


@pytest.mark.parametrize("threads", [2, 8])
def test_each_thread_is_answered_for_its_own_words(predictor, tiny_cfg, picture, threads):
    torch.manual_seed(0)
    other = OpenVocabPredictor(tiny_cfg())  # so that the threads find nothing prepared
    vocabularies = [[f"thing {i}", *NAMES[: i % 4]] for i in range(threads)]
    expected = [other(picture, words).labels for words in vocabularies]
    jobs = [i % threads for i in range(60)]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda i: predictor(picture, vocabularies[i]), jobs)
        for i, prediction in zip(jobs, found, strict=True):
            assert prediction.vocabulary.names == tuple(vocabularies[i])
            np.testing.assert_array_equal(prediction.labels, expected[i])


def test_a_vocabulary_counts_for_its_call_only(predictor, picture):
    predictor.vocabulary = Vocabulary.from_names(["cat", "dog"])
    predictor(picture, NAMES)
    assert predictor(picture).vocabulary.names == ("cat", "dog")


def test_found_classes_by_falling_share():
    labels = np.array([[2, 2, 2, 0], [2, 2, 0, 3]])
    vocabulary = Vocabulary.from_names(["cat", "dog", "windowpane, window", "sky"])
    assert Prediction(labels, vocabulary).found == [
        FoundClass(2, "windowpane", 5 / 8),
        FoundClass(0, "cat", 2 / 8),
        FoundClass(3, "sky", 1 / 8),
    ]


@pytest.fixture
def data_set():
    """A registered data set's name, with the class names "cat" and "dog"."""
    MetadataCatalog.get("two_animals").set(stuff_classes=["cat", "dog"])
    yield "two_animals"
    MetadataCatalog.remove("two_animals")


def test_default_vocabulary(tiny_cfg, data_set, tmp_path):
    assert OpenVocabPredictor(tiny_cfg()).vocabulary is None
    on_data = OpenVocabPredictor(tiny_cfg("DATASETS.TEST", (data_set,)))
    assert on_data.vocabulary.names == ("cat", "dog")
    trained = OpenVocabPredictor(tiny_cfg("DATASETS.TRAIN", (data_set,)))
    assert trained.vocabulary.names == ("cat", "dog")

    file = tmp_path / "classes.json"
    file.write_text(json.dumps(["sky"]))
    keys = ("DATASETS.TEST", (data_set,), "MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", str(file))
    assert OpenVocabPredictor(tiny_cfg(*keys)).vocabulary.names == ("sky",)


def test_full_weights_are_loaded_and_clip_weights_are_not(tiny_cfg, picture, tmp_path):
    torch.manual_seed(1)
    model = build_model(tiny_cfg()).eval()
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    weights = str(tmp_path / "model.pth")
    # No such weights exist: reading or downloading them would be an error.
    keys = ("MODEL.WEIGHTS", weights, "MODEL.CLIP.PRETRAINED", "gone.pt")
    predictor = OpenVocabPredictor(tiny_cfg(*keys))
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, predictor.model.state_dict()[name]), name
    assert not predictor.model.training

    with pytest.raises(ValueError, match=r"model\.pth.*does not match"):
        OpenVocabPredictor(tiny_cfg(*keys, "MODEL.SEM_SEG_HEAD.KERNEL_SIZES", [5, 5, 5]))


def test_missing_weights_are_named(tiny_cfg):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        OpenVocabPredictor(tiny_cfg("MODEL.WEIGHTS", "gone.pth"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_another_array_is_an_error(predictor, array):
    with pytest.raises(ValueError, match="type uint8"):
        predictor(array, NAMES)


def test_missing_images_and_class_names_are_errors(predictor, picture):
    with pytest.raises(ValueError, match="no class names"):
        predictor(picture)
    with pytest.raises(ValueError, match="No class names"):
        predictor(picture, [])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        predictor("gone.jpg", NAMES)


def test_a_device_that_torch_cannot_use_is_named(tiny_cfg):
    message = "cannot use the device 'toaster' here .*: use (cpu|cuda|mps)$"
    with pytest.raises(ValueError, match=message):
        OpenVocabPredictor(tiny_cfg("MODEL.DEVICE", "toaster"))


def test_a_predictor_made_in_inference_mode_embeds_once(tiny_cfg, picture, monkeypatch):
    with torch.inference_mode():
        predictor = OpenVocabPredictor(tiny_cfg())
    embedded = []
    encoder = predictor.model.text_encoder
    embed = encoder._embed_classes
    monkeypatch.setattr(
        encoder, "_embed_classes", lambda classes: embedded.append(1) or embed(classes)
    )
    for _ in range(3):
        predictor(picture, NAMES)
    assert embedded == [1]
