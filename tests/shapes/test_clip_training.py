"""Training the small CLIP: the losses of a seed, resuming, the written weights."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from sed_d2.shapes import clip_training
from sed_d2.shapes.clip_data import PHASES
from sed_d2.shapes.clip_model import NAME
from sed_d2.shapes.clip_training import ClipTraining, TrainingOptions, draw_batches, learning_rate


def few_steps(output, **others):
    """Options of three steps, two of crops and one of whole scenes."""
    sizes = ((2, 4), (0, 1), (1, 1))
    phases = [
        replace(phase, steps=steps, batch=batch)
        for phase, (steps, batch) in zip(PHASES, sizes, strict=True)
    ]
    options = {"phases": phases, "period": 2, "eval_scenes": 4, "workers": 0, **others}
    return TrainingOptions(output=output, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a run of three steps."""
    output = tmp_path_factory.mktemp("clip")
    ClipTraining(few_steps(output)).run()
    return output


def test_the_weights_load_in_open_clip_in_half_precision(trained):
    weights = torch.load(trained / "clip.pt", weights_only=True)
    assert all(value.dtype == torch.float16 for value in weights.values())
    model = open_clip.create_model(NAME, pretrained=str(trained / "clip.pt")).eval()
    assert torch.equal(model.text_projection, weights["text_projection"].float())
    tokens = open_clip.get_tokenizer(NAME)(["a blue star.", "grass"])
    with torch.no_grad():
        text = model.encode_text(tokens, normalize=True)
        image = model.encode_image(torch.rand(2, 3, 64, 64), normalize=True)
    np.testing.assert_allclose(text.norm(dim=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(image.norm(dim=-1), 1, rtol=1e-5)
    assert text.shape == image.shape == (2, 64)


def test_a_seed_gives_the_losses_that_it_gave_before(tmp_path):
    """Weights, scenes and prompts of a seed come from random streams in a fixed order."""
    options = few_steps(tmp_path, seed=4, phases=[replace(PHASES[0], steps=3, batch=8)])
    training = ClipTraining(options)
    losses = [training.train_step(*batch) for batch in draw_batches(options.phases, 0, 4, 0)]
    np.testing.assert_allclose(losses, [28.67183, 27.01674, 26.92173], rtol=1e-3)


def test_a_stopped_run_resumes_to_the_same_weights(trained, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    original, calls = clip_training.training_loss, []

    def stop_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise StoppedError
        return original(*args)

    monkeypatch.setattr(clip_training, "training_loss", stop_at_the_third)
    with pytest.raises(StoppedError):
        ClipTraining(few_steps(tmp_path)).run()
    assert not (tmp_path / "clip.pt").exists()
    ClipTraining(few_steps(tmp_path)).run()
    assert len(calls) == 4  # only the third step again
    whole = torch.load(trained / "clip.pt", weights_only=True)
    resumed = torch.load(tmp_path / "clip.pt", weights_only=True)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-5)


def test_other_options_do_not_continue_a_run(trained):
    with pytest.raises(ValueError, match="last.pth was trained with .* another output folder"):
        ClipTraining(few_steps(trained, lr=0.1)).run()


def test_the_learning_rate_warms_up_and_falls():
    assert learning_rate(2.0, 0, 1000) == 2.0 / 50
    # Half a cosine from 1 to 0.01: 0.505 in the middle, 0.505 - 0.495 at the end.
    assert learning_rate(2.0, 500, 1000) == pytest.approx(2 * 0.505)
    assert learning_rate(2.0, 1000, 1000) == pytest.approx(2 * 0.01)
