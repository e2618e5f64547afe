"""Training the small CLIP: targets, prompts, a few steps, resuming, the written weights."""

import re

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from sed_d2.shapes import scenes as shapes
from sed_d2.shapes.pictures import PHASES, Pictures, cell_shares
from tools import train_clip

FEW_STEPS = [
    *("--steps", "2", "0", "1", "--batch", "4", "1", "1"),
    *("--eval-pictures", "4", "--workers", "0"),
]


def test_cell_shares_count_the_classes_of_each_cell():
    labels = np.zeros((64, 96), np.uint8)
    labels[:32, :16] = 9  # half of the first cell
    labels[32:, 64:] = 91  # all of the last
    shares = cell_shares(labels)
    assert shares.shape == (2, 3, 92)
    assert shares[0, 0, 9] == 0.5 and shares[0, 0, 0] == 0.5
    assert shares[1, 2, 91] == 1
    np.testing.assert_array_equal(shares.sum(-1), 1)


def test_attribute_values_share_words():
    (colours, _), (patterns, _), (forms, _) = map(train_clip.attribute_values, range(3))
    assert (colours.shape[1], patterns.shape[1], forms.shape[1]) == (8 + 7, 8 + 2, 8 + 6)
    names = list(shapes.TRAIN_CLASSES)
    first, second = names.index("red square"), names.index("red striped circle")
    assert torch.equal(colours[first], colours[second])
    assert not torch.equal(patterns[first], patterns[second])
    assert not torch.equal(forms[first], forms[second])
    assert colours[names.index("sky")] @ colours.sum(0) == 1  # its own value


def test_values_that_make_a_held_out_name_are_known():
    """Of plain red things, circle and ring are held out; the others are trained."""
    forms, held_out = train_clip.attribute_values(2)
    names = list(shapes.TRAIN_CLASSES)
    square = names.index("red square")
    for shape in ("ring", "circle"):
        assert held_out[square, forms[names.index(f"white striped {shape}")].argmax()] == 1
    assert held_out[square].sum() == 2
    assert held_out[names.index("sky")].sum() == 0


def test_readout_does_not_teach_what_is_held_out():
    """A red square beside grass says nothing about circles and rings, but about crosses."""
    readout = train_clip.WordReadout(4)
    names = list(shapes.TRAIN_CLASSES)
    targets = torch.zeros(1, len(names))
    targets[0, names.index("red square")] = targets[0, names.index("grass")] = 0.5
    readout(F.normalize(torch.ones(1, 4), dim=-1), targets).backward()
    forms, _ = train_clip.attribute_values(2)
    gradient = readout.layers[2].weight.grad.abs().sum(1)
    of_name = {name: gradient[row.argmax()] for name, row in zip(names, forms, strict=True)}
    assert of_name["blue circle"] == of_name["blue ring"] == 0
    assert of_name["red cross"] > 0 and of_name["sky"] > 0


def test_soft_cross_entropy_of_known_probabilities():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    targets = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    rows = [0.5 * np.log(2) + 0.5 * np.log(4), -np.log(0.8)]
    loss = train_clip.soft_cross_entropy(logits, targets)
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-6)
    loss = train_clip.soft_cross_entropy(logits, targets, torch.tensor([3.0, 1.0]))
    np.testing.assert_allclose(loss, (3 * rows[0] + rows[1]) / 4, rtol=1e-6)


def test_wrong_names_have_other_words_in_the_same_templates():
    torch.manual_seed(0)
    tokenizer = open_clip.get_tokenizer(train_clip.NAME)
    prompts = train_clip.Prompts(tokenizer)
    names = [tokenizer.decode(tokens.tolist()) for tokens in prompts.sample()]
    assert all(name in text for name, text in zip(shapes.TRAIN_CLASSES, names, strict=True))
    known = {tuple(tokens) for tokens in prompts.tokens.flatten(0, 1).tolist()}
    wrong = prompts.sample_wrong(50)
    assert wrong.shape == (50, prompts.tokens.shape[2])
    assert not known & {tuple(tokens) for tokens in wrong.tolist()}
    swapped = (wrong[:, None] != prompts.tokens.flatten(0, 1)).sum(-1).amin(1)
    assert swapped.min() >= 1 and swapped.max() <= 3  # at most the words of the name


def test_crops_show_one_training_object():
    phase = PHASES[0]
    pictures = Pictures(phase, shapes.SEEN_IDS, seed=0, start=5, stop=25)
    assert len(pictures) == 20
    counts = []
    for image, shares in map(pictures.__getitem__, range(len(pictures))):
        assert image.shape == (3, 64, 64) and shares.shape == (2, 2, 92)
        objects = shares[..., shapes.SEEN_IDS.start :].sum((0, 1)).nonzero()
        counts.append(len(objects))
        assert all(int(i) + shapes.SEEN_IDS.start in shapes.SEEN_IDS for i in objects)
    assert counts == [1] * 20
    later = Pictures(phase, shapes.SEEN_IDS, seed=0, start=6, stop=25)
    assert torch.equal(later[0][0], pictures[1][0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a run of three steps."""
    output = tmp_path_factory.mktemp("clip")
    train_clip.main(["--output", str(output), "--period", "2", *FEW_STEPS])
    return output


def test_the_weights_load_in_open_clip_in_half_precision(trained):
    weights = torch.load(trained / "clip.pt", weights_only=True)
    assert all(value.dtype == torch.float16 for value in weights.values())
    model = open_clip.create_model(train_clip.NAME, pretrained=str(trained / "clip.pt")).eval()
    assert torch.equal(model.text_projection, weights["text_projection"].float())
    tokens = open_clip.get_tokenizer(train_clip.NAME)(["a blue star.", "grass"])
    with torch.no_grad():
        text = model.encode_text(tokens, normalize=True)
        image = model.encode_image(torch.rand(2, 3, 64, 64), normalize=True)
    np.testing.assert_allclose(text.norm(dim=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(image.norm(dim=-1), 1, rtol=1e-5)
    assert text.shape == image.shape == (2, 64)


def test_the_log_tells_seen_and_unseen_accuracy(trained):
    log = (trained / "log.txt").read_text()
    assert len(re.findall(r'"step": \d', log)) == 2
    for name in ("crops_seen", "pairs_unseen", "scenes_seen", "scenes_unseen"):
        assert f'"{name}": ' in log


def test_a_stopped_run_resumes_to_the_same_weights(trained, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    original, calls = train_clip.training_loss, []

    def stop_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise StoppedError
        return original(*args)

    command = ["--output", str(tmp_path), "--period", "2", *FEW_STEPS]
    monkeypatch.setattr(train_clip, "training_loss", stop_at_the_third)
    with pytest.raises(StoppedError):
        train_clip.main(command)
    assert not (tmp_path / "clip.pt").exists()
    train_clip.main(command)
    assert len(calls) == 4  # only the third step again
    whole = torch.load(trained / "clip.pt", weights_only=True)
    resumed = torch.load(tmp_path / "clip.pt", weights_only=True)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-5)


def test_another_recipe_does_not_continue_a_run(trained, capsys):
    with pytest.raises(SystemExit) as error:
        train_clip.main(["--output", str(trained), "--lr", "0.1", *FEW_STEPS])
    assert "last.pth was trained with" in str(error.value)
    assert "another output folder" in str(error.value)


def test_evaluation_counts_right_object_cells():
    """A model whose answer is known: every cell says the 13th object."""

    class Constant:
        clip = None

        def eval(self):
            return self

        def train(self):
            return self

        def __call__(self, images):
            cells = F.one_hot(torch.full((len(images), 2, 2), 12), 84).float()
            return {"embedding": cells.permute(0, 3, 1, 2)}

    class Identity:
        def __init__(self, clip, tokenizer):
            pass

        def __call__(self, classes):
            return torch.eye(len(classes))[:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_clip, "TextEncoder", Identity)
        figures = train_clip.evaluate(Constant(), None, PHASES[:1], 40, seed=0)
    right = total = 0
    pictures = Pictures(PHASES[0], shapes.SEEN_IDS, 10**6, 0, 40)
    for index in range(40):
        _, shares = pictures[index]
        share, label = shares[..., 8:].max(-1)
        of_object = share >= 0.3
        right, total = right + (label[of_object] == 12).sum(), total + of_object.sum()
    assert figures == {"crops_seen": round(100 * (right / total).item(), 1), "crops_unseen": 0.0}
