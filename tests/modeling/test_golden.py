"""The model against frozen answers of the released implementation (float32, CPU)."""

import numpy as np
import pytest
import torch
from golden_inputs import golden_features, golden_image, golden_text

from sed_d2.modeling.released_keys import rename_keys
from sed_d2.modeling.sed.keys import RELEASED_PREFIXES

from ..conftest import deviation, golden, released_weights

FEATURES = 1e-4  # of the reference's standard deviation
GRADIENTS = 1e-3  # relative


@pytest.fixture(scope="module")
def features():
    """Features of one image, by name."""
    sizes = {"embedding": (640, 24), "res4": (512, 48), "res3": (256, 96), "res2": (128, 192)}
    names = {"embedding": "image_embedding"}
    return {
        name: torch.from_numpy(golden_features(names.get(name, name), (1, channels, side, side)))
        for name, (channels, side) in sizes.items()
    }


@pytest.fixture(params=["auto", "plain"])
def model(model_b, request):
    """B with the golden weights, in the form of inference and in the plain one."""
    accelerator, head = model_b.accelerator, model_b.sem_seg_head
    pooling, top_k = head.test_pooling, head.top_k
    if request.param == "plain":
        model_b.accelerator = None
    yield model_b
    model_b.accelerator, head.test_pooling, head.top_k = accelerator, pooling, top_k


@pytest.mark.parametrize("pooling", [1, 2])
@torch.no_grad()
def test_decoder(model, features, pooling, record_property):
    reference = golden("decoder_b.npz")
    model.sem_seg_head.test_pooling = (pooling, pooling)
    _, head = model.inference_forms()
    text = torch.from_numpy(golden_text(7))
    output = head(features, text)
    auxiliary = model.sem_seg_head(features, text, auxiliary=True).auxiliary
    ours = dict(zip(["logits", "aux0", "aux1", "aux2"], [output.logits, *auxiliary], strict=True))
    assert output.survivors.tolist() == list(range(7))
    for name, tensor in ours.items():
        found = deviation(tensor[0], reference[f"pool{pooling}_{name}"])
        record_property(name, found)
        assert found < FEATURES, name


@torch.no_grad()
def test_early_rejection(model, features, record_property):
    reference = golden("decoder_b.npz")
    model.sem_seg_head.top_k = 1
    _, head = model.inference_forms()
    output = head(features, torch.from_numpy(golden_text(40)))
    assert output.survivors.tolist() == np.flatnonzero(reference["fast_T40_k1_survivors"]).tolist()
    found = deviation(output.scores[0, :, ::4, ::4], reference["fast_T40_k1_scores"])
    record_property("scores", found)
    assert found < FEATURES


@torch.no_grad()
def test_whole_model(model, record_property):
    reference = golden("model_b.npz")
    image = torch.from_numpy(golden_image(480, 640)).permute(2, 0, 1).float()
    encode, _ = model.inference_forms()
    ((view,),) = model.views(480, 640)
    features = encode(view.crop((image - model.pixel_mean) / model.pixel_std))
    inputs = [{"image": image, "height": 360, "width": 500}]
    (result,) = model(inputs)
    ours = {
        "text": model.text_embeddings(),
        "image_embedding": features["embedding"],
        "res2": features["res2"][:, :, ::16, ::16],
        "res3": features["res3"][:, :, ::8, ::8],
        "res4": features["res4"][:, :, ::4, ::4],
        "sem_seg": result["sem_seg"][:, ::4, ::4],
    }
    for name, tensor in ours.items():
        found = deviation(tensor, reference[name])
        record_property(name, found)
        assert found < FEATURES, name
    labels = result["sem_seg"].argmax(0)
    agreement = (labels.numpy() == reference["labels"]).mean()
    record_property("labels", agreement)
    assert agreement >= 0.995
    (only_labels,) = model(inputs, labels_only=True)
    assert torch.equal(only_labels["labels"], labels)


def test_training_step(model_b, record_property):
    reference = golden("train_b.json")
    labels = golden_image(768, 768, seed=100).astype(np.int64).sum(-1) % 7
    labels[labels == 6] = 255
    image = torch.from_numpy(golden_image(768, 768)).permute(2, 0, 1).float()
    model_b.train()
    model_b.backbone.eval()  # the tower's drop path is off in the reference
    try:
        losses = model_b([{"image": image, "sem_seg": torch.from_numpy(labels)}])
        sum(losses.values()).backward()
    finally:
        model_b.eval()
    assert losses.keys() == reference["losses"].keys()
    for name, value in reference["losses"].items():
        record_property(name, abs(losses[name].item() / value - 1))
        assert losses[name].item() == pytest.approx(value, rel=FEATURES), name

    released = {key: key for key in [*reference["grad_norms"], *reference["frozen"]]}
    rename_keys(released, RELEASED_PREFIXES)
    gradients = {name: p.grad for name, p in model_b.named_parameters()}
    model_b.zero_grad()
    assert gradients.keys() == released.keys()
    assert {released[n] for n, g in gradients.items() if g is None} == set(reference["frozen"])
    worst = 0.0
    for name, gradient in gradients.items():
        if gradient is not None:
            expected = reference["grad_norms"][released[name]]
            assert gradient.norm().item() == pytest.approx(expected, rel=GRADIENTS), name
            worst = max(worst, abs(gradient.norm().item() / expected - 1))
    record_property("gradient norms", worst)


def test_golden_weights_load_by_their_released_names(model_b):
    weights = released_weights("sem_seg_head.predictor.transformer.head0.")
    aux_head = model_b.sem_seg_head.decoder.levels[0].aux_head
    assert torch.equal(aux_head.weight, weights["sem_seg_head.predictor.transformer.head0.weight"])
