"""When fast forms are built, kept and built again, and that they compute what the modules do."""

import copy
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sed_d2.modeling.clip.convnext import CLIPConvNeXt
from sed_d2.modeling.fast import Accelerator
from sed_d2.modeling.fast.clip_convnext import FastCLIPConvNeXt
from sed_d2.modeling.fast.sed_head import FastSEDHead
from sed_d2.modeling.sed.decoder import GradualFusionDecoder
from sed_d2.modeling.sed.head import SEDHead


class CastCounter(TorchDispatchMode):
    """Counts the casts of some tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.pointers = {tensor.data_ptr() for tensor in tensors}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].data_ptr() in self.pointers
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["backbone", "head"])
def part(request, build_backbone, build_head, images, features, text):
    """A module and its inputs."""
    if request.param == "backbone":
        return build_backbone(), (images,)
    return build_head(top_k=2), (features, text)


def tensors(output) -> list[torch.Tensor]:
    """List the tensors of features or of a head's output."""
    return list(output.values()) if isinstance(output, dict) else [output.logits, output.survivors]


def assert_equal(output, expected):
    for tensor, other in zip(tensors(output), tensors(expected), strict=True):
        assert torch.equal(tensor, other)


def assert_near(output, expected):
    for tensor, other in zip(tensors(output), tensors(expected), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("chunk", [0, 1000, 1 << 20])
@torch.no_grad()
def test_head_is_the_plain_head(build_head, features, text, pooling, top_k, chunk):
    head = build_head(test_pooling=pooling, top_k=top_k)
    fast = Accelerator(chunk)(head, torch.float32)
    assert isinstance(fast, FastSEDHead)
    output = fast(features, text)
    assert not top_k or len(output.survivors) < len(text)
    assert_near(output, head(features, text))


@torch.no_grad()
def test_head_of_two_images(build_head, features, text):
    head = build_head()
    two = {name: torch.cat([x, x.flip(-1).neg()]) for name, x in features.items()}
    assert_near(Accelerator()(head, torch.float32)(two, text), head(two, text))


@torch.no_grad()
def test_backbone_is_the_plain_backbone(build_backbone, images):
    backbone = build_backbone()
    fast = Accelerator()(backbone, torch.float32)
    assert isinstance(fast, FastCLIPConvNeXt)
    assert_near(fast(images), backbone(images))


@torch.no_grad()
def test_segmenter_of_two_images(tiny_model):
    """Sizes, classes and rejection as in an evaluation, by both settings of TEST.KERNELS."""
    generator = torch.Generator().manual_seed(1)
    batch = [
        {"image": 255 * torch.rand(3, *size, generator=generator), "height": 40, "width": 30}
        for size in ((50, 70), (64, 64))
    ]
    names = [f"thing {i}" for i in range(20)]
    outputs = [
        tiny_model("TEST.KERNELS", kernels, "TEST.FAST_INFERENCE", True, names=names)(batch)
        for kernels in ("auto", "plain")
    ]
    for fast, plain in zip(*outputs, strict=True):
        torch.testing.assert_close(fast["sem_seg"], plain["sem_seg"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_weights_are_cast_once(part, precision):
    module, inputs = part
    accelerate = Accelerator()
    form = accelerate(module, precision)
    expected = form(*inputs)
    with CastCounter(module.parameters()) as casts:
        assert accelerate(module, precision) is form
        assert_equal(accelerate(module, precision)(*inputs), expected)
    assert casts.count == 0
    with CastCounter(module.parameters()) as casts:
        Accelerator()(module, precision)(*inputs)
    assert (casts.count == 0) == (precision == torch.float32)


@torch.no_grad()
def test_each_precision_has_a_form(part):
    module, inputs = part
    accelerate = Accelerator()
    forms = {p: accelerate(module, p) for p in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(set(forms.values())) == 3
    for precision, form in forms.items():
        assert accelerate(module, precision) is form
        output = form(*inputs)
        last = output["embedding"] if isinstance(output, dict) else output.logits
        assert last.dtype == precision


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_of_the_caller_changes_nothing(part, precision):
    """The form decides the precision, when it is built, when it prepares text and when it runs."""
    module, inputs = part
    if isinstance(module, SEDHead):
        module.template_channels, module.pre_reject = 40, 7
    expected = Accelerator()(module, precision)(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = Accelerator()(module, precision)(*inputs)
        assert torch.is_autocast_enabled("cpu")
    assert_equal(output, expected)


def scale_parameters(module: nn.Module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)


def replace_parameters(module: nn.Module):
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(0.5 * parameter.detach()))


def scaled_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: 0.5 * value for name, value in module.state_dict().items()}


def train_one_step(module: nn.Module, inputs):
    module.train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    with torch.enable_grad():
        sum(x.square().mean() for x in tensors(module(*inputs)) if x.requires_grad).backward()
    optimizer.step()
    module.eval()


CHANGES = {
    "load_state_dict": lambda module, inputs: module.load_state_dict(scaled_state(module)),
    "load_state_dict, assign": lambda module, inputs: module.load_state_dict(
        scaled_state(module), assign=True
    ),
    "in place": lambda module, inputs: scale_parameters(module),
    "replaced": lambda module, inputs: replace_parameters(module),
    "rounded": lambda module, inputs: module.to(torch.bfloat16).to(torch.float32),
    "trained": train_one_step,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_forms_follow_the_weights(part, change, precision):
    module, inputs = part
    accelerate = Accelerator()
    before = accelerate(module, precision)(*inputs)
    change(module, inputs)
    after = accelerate(module, precision)(*inputs)
    assert not torch.equal(tensors(before)[0], tensors(after)[0])
    assert_equal(after, Accelerator()(module, precision)(*inputs))
    if precision == torch.float32:
        assert_near(after, module(*inputs))


@torch.no_grad()
def test_each_weight_counts(build_head, features, text):
    """A change of one weight alone is seen, and changes the output as in the plain head."""
    head, text = build_head(), text[:3]
    accelerate = Accelerator()
    before = head(features, text).logits
    for name, parameter in head.named_parameters():
        if "aux_head" in name:
            continue  # read by early rejection alone
        accelerate(head, torch.float32)
        value = parameter.clone()
        parameter.add_(torch.randn_like(parameter))
        expected = head(features, text)
        assert (expected.logits - before).abs().max() > 1e-4, name  # ten tolerances
        assert_near(accelerate(head, torch.float32)(features, text), expected)
        parameter.copy_(value)


@torch.no_grad()
def test_weights_made_in_inference_mode_are_never_stale(build_head, features, text):
    accelerate = Accelerator()
    with torch.inference_mode():
        head = build_head()
        accelerate(head, torch.bfloat16)(features, text)
        scale_parameters(head)
        output = accelerate(head, torch.bfloat16)(features, text)
        assert_equal(output, Accelerator()(head, torch.bfloat16)(features, text))


def test_what_has_no_fast_form(build_backbone, build_head):
    class OtherHead(SEDHead):
        pass

    class OtherBackbone(CLIPConvNeXt):
        pass

    accelerate = Accelerator()
    head, backbone = build_head(), build_backbone()
    assert accelerate(OtherHead(decoder=head.decoder).eval(), torch.float32) is None
    assert accelerate(OtherBackbone(clip=backbone.clip).eval(), torch.float32) is None
    assert accelerate(nn.Linear(2, 2).eval(), torch.float32) is None
    assert accelerate(head.train(), torch.float32) is None
    assert accelerate(head.eval(), torch.float32) is not None


@torch.no_grad()
def test_a_head_with_parts_of_other_classes_has_no_fast_form(build_head):
    class OtherDecoder(GradualFusionDecoder):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            return output._replace(logits=output.logits + 1)

    accelerate = Accelerator()
    head = build_head()
    head.decoder.__class__ = OtherDecoder
    assert accelerate(head, torch.float32) is None
    head = build_head()
    nn.utils.parametrizations.weight_norm(head.decoder.head)
    assert accelerate(head, torch.float32) is None


def test_clear_frees_the_forms(part):
    module, _ = part
    accelerate = Accelerator()
    form = weakref.ref(accelerate(module, torch.bfloat16))
    assert form() is not None
    accelerate.clear()
    assert form() is None


@torch.no_grad()
def test_parts_replaced_before_clear_are_watched(build_head, features, text):
    accelerate = Accelerator()
    head = build_head()
    accelerate(head, torch.bfloat16)
    head.decoder.head = nn.Conv2d(16, 1, 3, padding=1)
    accelerate.clear()
    accelerate(head, torch.bfloat16)
    scale_parameters(head.decoder.head)
    output = accelerate(head, torch.bfloat16)(features, text)
    assert_equal(output, Accelerator()(head, torch.bfloat16)(features, text))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@torch.no_grad()
def test_a_copy_of_a_model_has_forms_of_its_weights(tiny_model, duplicate):
    model = tiny_model("TEST.CHUNK_ELEMENTS", 1000)
    batch = [{"image": 255 * torch.rand(3, 64, 64)}]
    (before,) = model(batch)
    other = duplicate(model)
    assert other.accelerator is not model.accelerator
    assert other.accelerator.chunk_elements == 1000
    assert torch.equal(other(batch)[0]["sem_seg"], before["sem_seg"])
    for name in ("backbone", "sem_seg_head"):
        forms = [m.accelerator(getattr(m, name), torch.float32) for m in (model, other)]
        assert forms[0] is not forms[1]
    scale_parameters(other)
    assert not torch.equal(other(batch)[0]["sem_seg"], before["sem_seg"])
    assert torch.equal(model(batch)[0]["sem_seg"], before["sem_seg"])


def test_threads_share_a_model(build_backbone, build_head, images, features, text):
    backbone, head = build_backbone(), build_head(top_k=2, template_channels=40)
    precisions = [torch.float32, torch.bfloat16]
    texts = [text.roll(i, dims=0) for i in range(8)]
    shared, barrier = Accelerator(), Barrier(8)

    forms = set()

    def run(accelerate, i):
        precision = precisions[i % 2]
        with torch.no_grad():
            encode, score = accelerate(backbone, precision), accelerate(head, precision)
            if accelerate is shared:
                forms.update({encode, score})
            return encode(images + i), score(features, texts[i])

    def run_thread(i):
        barrier.wait()
        return [run(shared, i) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(run_thread, range(8)))
    assert len(forms) == 4  # two modules, two precisions
    for i, thread_outputs in enumerate(outputs):
        expected = run(Accelerator(), i)
        for output in thread_outputs:
            assert_equal(output[0], expected[0])
            assert_equal(output[1], expected[1])


@pytest.mark.parametrize("precision", ["", "bfloat16"])
def test_training_goes_on_after_inference_mode(tiny_model, precision):
    model = tiny_model("TEST.PRECISION", precision, "TEST.TEMPLATE_CHANNELS", 40)
    sem_seg = torch.randint(0, 3, (64, 64), generator=torch.Generator().manual_seed(1))
    batch = [{"image": 255 * torch.rand(3, 64, 64), "sem_seg": sem_seg}]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        with torch.inference_mode():
            (before,) = model(batch)
        model.train()
        sum(model(batch).values()).backward()
        optimizer.step()
        model.eval()
        with torch.inference_mode():
            (after,) = model(batch)
            (expected,) = copy.deepcopy(model)(batch)
        assert not torch.equal(after["sem_seg"], before["sem_seg"])
        assert torch.equal(after["sem_seg"], expected["sem_seg"])
