"""The words of the world: combinations, splits of the classes, distractors."""

import pytest

from sed_d2.shapes import words
from sed_d2.shapes.dataset import make_scene
from sed_d2.vocabulary import Vocabulary


def test_the_world_has_92_classes():
    assert len(words.COLOURS) == 7 and len(words.SHAPES) == 6
    assert len(words.CLASSES) == 8 + 7 * 6 * 2
    assert len(set(words.CLASSES)) == len(words.CLASSES)
    assert "red striped circle" in words.CLASSES and "blue star" in words.CLASSES
    # A fifth of 84.
    assert len(words.UNSEEN_IDS) == 17


def test_every_pair_of_attributes_occurs_in_training():
    seen = [words.ATTRIBUTES[i] for i in words.SEEN_IDS]
    assert len({(colour, shape) for colour, _, shape in seen}) == 7 * 6
    assert len({(colour, pattern) for colour, pattern, _ in seen}) == 7 * 2
    assert len({(pattern, shape) for _, pattern, shape in seen}) == 2 * 6


def test_distractors_fill_a_vocabulary_of_hundreds():
    names = words.vocabulary_of_size(847)
    assert names[:92] == words.CLASSES
    assert len(Vocabulary.from_names(names)) == 847
    known = {word for name in words.CLASSES for word in name.split()}
    coloured = [name for name in names[92:] if name.split()[0] in words.COLOURS]
    assert len(coloured) == 378  # every other one of 755
    things = [name.split() for name in names[92:]]
    assert all(thing[-1] not in known for thing in things)
    assert words.distractors(50) == names[92:142]
    for count in (5000, -1):
        with pytest.raises(ValueError, match=f"^{count} distractors .* 92 to [0-9]+ names in all"):
            words.distractors(count)


def test_a_small_vocabulary_has_the_backgrounds_and_the_held_out_combinations():
    required = {words.CLASSES[i] for i in (*words.BACKGROUND_IDS, *words.UNSEEN_IDS)}
    names = words.vocabulary_of_size(50)
    assert len(set(names)) == 50 and required <= set(names) <= set(words.CLASSES)
    assert set(words.vocabulary_of_size(25)) == required
    assert words.vocabulary_of_size(92) == words.CLASSES
    with pytest.raises(ValueError, match="of 24 names has no room .* ask for 25 or more"):
        words.vocabulary_of_size(24)


def test_no_distractor_of_tests_shares_a_word_with_those_of_training():
    looks = {*words.COLOURS, *words.PATTERNS}
    trained, tested = (
        {word for name in names for word in name.split()} - looks
        for names in (words.TRAIN_DISTRACTORS, words.distractors(755))
    )
    assert len(trained) > 100 and not trained & tested
    assert not {word for name in words.CLASSES for word in name.split()} & (trained | tested)


def test_training_labels_never_have_a_distractor():
    assert len(words.TRAIN_CLASSES) == 75
    assert all(make_scene(index, "train")[1].max() < 75 for index in range(8))
