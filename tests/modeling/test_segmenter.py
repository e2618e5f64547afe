"""The segmenter on tiny random weights: what must hold whatever the weights are."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sed_d2 import Vocabulary

NAMES = ("cat", "dog", "sky", "grass", "road", "wooden chair, stool")


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        {"image": 255 * torch.rand(3, *size, generator=generator), "height": 40, "width": 30}
        for size in sizes
    ]


def scores(model, inputs):
    with torch.no_grad():
        return [result["sem_seg"] for result in model(inputs)]


def test_output_is_scores_at_the_asked_size(tiny_model):
    (result,) = scores(tiny_model(names=NAMES), images((50, 70)))
    assert result.shape == (6, 40, 30)
    assert result.min() >= 0 and result.max() <= 1
    without_size = [{"image": images((50, 70))[0]["image"]}]
    assert scores(tiny_model(names=NAMES), without_size)[0].shape == (6, 50, 70)


def test_a_batch_answers_for_every_image(tiny_model):
    model = tiny_model("TEST.FAST_INFERENCE", True, "TEST.TOPK", 1, names=NAMES)
    inputs = images((50, 70), (64, 64), (91, 33))
    together = scores(model, inputs)
    for one, result in zip(inputs, together, strict=True):
        torch.testing.assert_close(scores(model, [one])[0], result, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_permuting_the_classes_permutes_the_scores(tiny_model):
    model = tiny_model(names=NAMES)
    inputs = images((64, 64))
    (before,) = scores(model, inputs)
    order = [3, 0, 5, 1, 4, 2]
    model.set_vocabulary(Vocabulary.from_names([NAMES[i] for i in order]))
    torch.testing.assert_close(scores(model, inputs)[0], before[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [6, 100])
def test_keeping_all_classes_is_the_full_path(tiny_model, k):
    inputs = images((64, 64))
    full = scores(tiny_model(names=NAMES), inputs)
    kept = scores(tiny_model("TEST.FAST_INFERENCE", True, "TEST.TOPK", k, names=NAMES), inputs)
    assert torch.equal(full[0], kept[0])


def test_rejected_classes_score_exactly_zero(tiny_model):
    model = tiny_model("TEST.FAST_INFERENCE", True, "TEST.TOPK", 1, names=NAMES)
    (result,) = scores(model, images((64, 64)))
    rejected = result.amax(dim=(1, 2)) == 0
    assert 0 < rejected.sum() < len(NAMES)
    assert (result[~rejected] > 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers_nearly_the_same(tiny_model, dtype):
    inputs = images((64, 64), (50, 70))
    plain = scores(tiny_model(names=NAMES), inputs)
    model = tiny_model("TEST.PRECISION", dtype, names=NAMES)
    assert model.text_embeddings().dtype == torch.float32
    for ours, expected in zip(scores(model, inputs), plain, strict=True):
        assert ours.dtype == torch.float32 and torch.isfinite(ours).all()
        assert not torch.equal(ours, expected)
        torch.testing.assert_close(ours, expected, atol=0.02, rtol=0)
        best, second = expected.topk(2, dim=0).values
        clear = best - second > 0.01
        assert clear.any()
        assert (ours.argmax(0) == expected.argmax(0))[clear].float().mean() > 0.95
    assert not torch.is_autocast_enabled("cpu")
    model.train()  # SOLVER.AMP is training's key
    target = torch.zeros(64, 64, dtype=torch.int64)
    losses = model([{"image": inputs[0]["image"], "sem_seg": target}])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize("fast", [False, True])
def test_labels_are_the_argmax_of_the_scores(tiny_model, fast):
    model = tiny_model("TEST.FAST_INFERENCE", fast, "TEST.TOPK", 1, names=NAMES)
    inputs = images((64, 64), (50, 70))
    with torch.no_grad():
        for result, score in zip(
            model(inputs, labels_only=True), scores(model, inputs), strict=True
        ):
            assert torch.equal(result["labels"], score.argmax(0))


def test_mirrored_views_make_the_answer_symmetric(tiny_model):
    opts = ("TEST.AUG.ENABLED", True, "TEST.AUG.FLIP", True, "TEST.AUG.SCALES", [1.0, 1.5])
    model = tiny_model(*opts, names=NAMES)
    image = images((48, 64))[0]["image"]
    sizes = {"height": 40, "width": 30}
    original, mirrored = scores(model, [{"image": x, **sizes} for x in (image, image.flip(2))])
    torch.testing.assert_close(mirrored.flip(2), original, atol=1e-5, rtol=0)
    (plain,) = scores(tiny_model(names=NAMES), [{"image": image, **sizes}])
    assert not torch.allclose(plain, original, atol=1e-4)


def test_sliding_windows_average_the_model_s_own_answers(tiny_model):
    opts = ("TEST.SLIDING.ENABLED", True, "TEST.SLIDING.WINDOW", 1.0, "TEST.SLIDING.OVERLAP", 0.0)
    model = tiny_model(*opts, names=NAMES)
    image = images((32, 64))[0]["image"]  # two windows, its halves
    (result,) = scores(model, [{"image": image}])
    parts = ((image, (32, 64)), (image[:, :, :32], (32, 32)), (image[:, :, 32:], (32, 32)))
    whole, left, right = scores(
        tiny_model(names=NAMES), [{"image": x, "height": h, "width": w} for x, (h, w) in parts]
    )
    expected = (whole + torch.cat([left, right], dim=2)) / 2
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        (labels,) = model([{"image": image}], labels_only=True)
    assert torch.equal(labels["labels"], result.argmax(0))


def test_the_vocabulary_changes_at_any_time_and_is_embedded_once(tiny_model, monkeypatch):
    model = tiny_model(names=NAMES)
    calls = []
    encode = model.text_encoder._embed
    monkeypatch.setattr(
        model.text_encoder, "_embed", lambda prompts: calls.append(1) or encode(prompts)
    )
    inputs = images((64, 64))
    assert scores(model, inputs)[0].shape[0] == 6
    scores(model, inputs)
    assert len(calls) == 1
    model.set_vocabulary(Vocabulary.from_names(["cat", "dog"]))
    assert len(calls) == 1
    assert scores(model, inputs)[0].shape[0] == 2
    assert len(calls) == 2


def test_loading_weights_forgets_the_embeddings_of_the_old_ones(tiny_model):
    model = tiny_model()
    before = model.text_embeddings()
    state = model.state_dict()
    state["backbone.clip.text_projection"] = torch.randn(
        state["backbone.clip.text_projection"].shape
    )
    model.load_state_dict(state)
    assert not torch.allclose(model.text_embeddings(), before, atol=1e-2)


def test_without_a_vocabulary_one_sentence_says_what_to_do(tiny_model):
    model = tiny_model()
    model.set_vocabulary(None)
    with pytest.raises(ValueError, match="call model.set_vocabulary"):
        scores(model, images((64, 64)))


def test_the_words_are_an_argument(tiny_model):
    model, inputs = tiny_model(names=NAMES), images((64, 64))
    (expected,) = scores(tiny_model(names=["dog", "red car"]), inputs)
    with torch.no_grad():
        for words in (
            "dog, red car",
            ["dog", "red car"],
            Vocabulary.from_names(["dog", "red car"]),
        ):
            assert torch.equal(model(inputs, vocabulary=words)[0]["sem_seg"], expected)
        text = model.text_embeddings("dog, red car")
        assert torch.equal(model(inputs, text=text)[0]["sem_seg"], expected)
        with pytest.raises(ValueError, match="pass one of the two"):
            model(inputs, vocabulary="dog", text=text)
    assert model.vocabulary.names == NAMES
    model.set_vocabulary("dog, red car")
    assert torch.equal(scores(model, inputs)[0], expected)


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_threads_with_vocabularies_of_their_own(tiny_model, kernels):
    model, inputs = tiny_model("TEST.KERNELS", kernels), images((64, 64))
    vocabularies = [[f"thing {i}", *NAMES[: i % 4]] for i in range(8)]
    with torch.no_grad():
        expected = [model(inputs, words)[0]["sem_seg"] for words in vocabularies]

    def segment(i):
        with torch.no_grad():  # the mode is a thread's own
            return model(inputs, vocabularies[i])[0]["sem_seg"]

    for threads in (2, 8):
        jobs = [i % threads for i in range(60)]
        with ThreadPoolExecutor(threads) as pool:
            for i, result in zip(jobs, pool.map(segment, jobs), strict=True):
                torch.testing.assert_close(result, expected[i], atol=1e-6, rtol=0)


def test_embeddings_made_in_inference_mode_serve_a_training_step(tiny_model):
    model = tiny_model()
    inputs = [{**images((64, 64))[0], "sem_seg": torch.randint(0, 3, (64, 64))}]
    with torch.inference_mode():
        model(inputs)
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    assert model.sem_seg_head.decoder.cost_conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("opts", [(), ("TEST.FAST_INFERENCE", True, "TEST.TOPK", 1)])
def test_plain_kernels_give_the_same_scores(tiny_model, opts):
    inputs = images((64, 64), (50, 70))
    fast = scores(tiny_model(*opts, names=NAMES), inputs)
    plain_model = tiny_model(*opts, "TEST.KERNELS", "plain", names=NAMES)
    assert plain_model.accelerator is None
    for ours, plain in zip(fast, scores(plain_model, inputs), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    # With gradients the modules themselves run, in evaluation too.
    result = tiny_model(*opts, names=NAMES)(inputs)[0]["sem_seg"]
    result.sum().backward()
    torch.testing.assert_close(result.detach(), fast[0], atol=1e-5, rtol=0)


def test_plain_half_precision_is_autocast(tiny_model):
    inputs = images((64, 64))
    plain = tiny_model("TEST.KERNELS", "plain", names=NAMES)
    expected = scores(plain, inputs)[0]
    half = tiny_model("TEST.KERNELS", "plain", "TEST.PRECISION", "bfloat16", names=NAMES)
    found = scores(half, inputs)[0]
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(inputs)[0]["sem_seg"], found)


def test_weights_may_change_at_any_time(tiny_model):
    model, inputs = tiny_model(names=NAMES), images((64, 64))
    before = scores(model, inputs)[0]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.sem_seg_head.decoder.head.weight.mul_(-1)
    assert not torch.allclose(scores(model, inputs)[0], before, atol=1e-3)
    assert torch.equal(scores(twin, inputs)[0], before)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(scores(model, inputs)[0], before)
    model.train()([{**inputs[0], "sem_seg": torch.zeros(64, 64, dtype=torch.int64)}])[
        "loss_sem_seg_0"
    ].backward()
    with torch.no_grad():
        for parameter in model.sem_seg_head.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    trained = scores(model.eval(), inputs)[0]
    assert not torch.equal(trained, before)
    fresh = tiny_model(names=NAMES)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(scores(fresh, inputs)[0], trained)


def test_hooks_run_in_inference(tiny_model):
    model, inputs = tiny_model(names=NAMES), images((64, 64))
    before = scores(model, inputs)[0]
    seen = []
    head = model.sem_seg_head
    for module in (model.backbone, model.backbone.clip.visual.trunk.stem, head, head.decoder):
        module.register_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(scores(model, inputs)[0], before, atol=1e-5, rtol=0)
    trunk = model.backbone.clip.visual.trunk
    assert seen == [trunk.stem, model.backbone, head.decoder, head]


def test_parts_may_be_replaced(tiny_model):
    model, inputs = tiny_model(names=NAMES), images((64, 64))
    before = scores(model, inputs)[0]
    decoder = model.sem_seg_head.decoder
    old = decoder.head
    decoder.head = torch.nn.Conv2d(16, 1, 3, padding=1)
    assert not torch.allclose(scores(model, inputs)[0], before, atol=1e-3)
    decoder.head = old
    assert torch.equal(scores(model, inputs)[0], before)
    decoder.head.weight.data.neg_()  # torch does not count it
    assert not torch.allclose(scores(model.eval(), inputs)[0], before, atol=1e-3)


def test_the_old_name_of_the_architecture_is_accepted(tiny_model):
    model = tiny_model("MODEL.META_ARCHITECTURE", "SED", names=NAMES)
    inputs = images((64, 64))
    assert torch.equal(scores(model, inputs)[0], scores(tiny_model(names=NAMES), inputs)[0])


def test_training_gives_four_losses_and_trains_what_it_should(tiny_model):
    model = tiny_model("MODEL.CLIP.FINETUNE", "frozen").train()
    inputs = [
        {"image": x["image"], "sem_seg": torch.randint(0, 3, x["image"].shape[1:])}
        for x in images((64, 64), (64, 64))
    ]
    losses = model(inputs)
    assert list(losses) == [f"loss_sem_seg_{i}" for i in range(4)]
    sum(losses.values()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith("backbone")}


def test_a_training_batch_asks_for_a_sample_of_the_classes(tiny_model):
    """With two of six classes it is a training with the vocabulary of those two."""
    target = torch.tensor([1, 4, 255, 4]).repeat_interleave(16).expand(64, 64)
    inputs = [{"image": images((64, 64))[0]["image"], "sem_seg": target}]
    few = tiny_model("MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES", 2, names=NAMES).train()
    own = tiny_model(names=[NAMES[1], NAMES[4]]).train()
    lookup = torch.full((256,), 255)
    lookup[[1, 4]] = torch.tensor([0, 1])
    expected = own([{**inputs[0], "sem_seg": lookup[target]}])
    for name, loss in few(inputs).items():
        torch.testing.assert_close(loss, expected[name])
    many = tiny_model("MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES", 6, names=NAMES).train()
    torch.testing.assert_close(many(inputs), tiny_model(names=NAMES).train()(inputs))


@pytest.mark.parametrize(
    "opts, message",
    [
        (("MODEL.CLIP.RESOLUTION", 100), "RESOLUTION 100 .* multiple of 32"),
        (("MODEL.SEM_SEG_HEAD.NUM_HEADS", 3), "width 16 cannot be split into 3 heads"),
        (("TEST.FAST_INFERENCE", True, "TEST.TOPK", 0), "TEST.TOPK 0"),
        (("TEST.PRECISION", "half"), "TEST.PRECISION 'half' is unknown: use bfloat16, float16"),
        (("TEST.KERNELS", "slow"), "TEST.KERNELS 'slow' is unknown: use auto or plain"),
        (("MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES", -1), "SAMPLED_CLASSES -1 is negative"),
        (("TEST.CHUNK_ELEMENTS", -1), "TEST.CHUNK_ELEMENTS -1"),
        (("TEST.PREREJECT", -1), "TEST.PREREJECT -1"),
        (("TEST.TEMPLATE_CHANNELS", 81), "TEST.TEMPLATE_CHANNELS 81"),
    ],
)
def test_values_that_cannot_work_are_refused(tiny_model, opts, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(*opts)
