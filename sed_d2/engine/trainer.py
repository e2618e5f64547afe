"""Trainer: Detectron2's DefaultTrainer with SED's data, optimizer, checkpoints and evaluation."""

import contextlib
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator

import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import SEDCheckpointer
from ..data import SemSegTestMapper, SemSegTrainMapper
from ..evaluation import build_evaluator
from ..evaluation.table import make_row, paper_miou, render, write_results
from ..vocabulary import Vocabulary
from .solver import build_optimizer

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains SED on ``cfg.DATASETS.TRAIN`` and evaluates it on ``cfg.DATASETS.TEST``.

    It is put together as DefaultTrainer is, with two differences that DefaultTrainer gives no
    other way to: models on CPUs are distributed too, and checkpoints are read strictly.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
            raise ValueError(
                f"SOLVER.AMP.ENABLED True needs a CUDA GPU and MODEL.DEVICE is {cfg.MODEL.DEVICE}: "
                "set it to False"
            )
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = distribute(model)
        trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_type(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SEDCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            strict=cfg.MODEL.WEIGHTS_STRICT,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def state_dict(self):
        """What a checkpoint keeps; Detectron2 0.6 forgets the optimizer, later ones do not."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        """Restore what :meth:`state_dict` keeps."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg):
        """Detectron2's build_model, without its log of every layer."""
        model = build_model(cfg)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        logger.info(
            "SED on %s with %.1f M parameters, of which %.1f M are trained, on %s",
            cfg.MODEL.CLIP.NAME, total / 1e6, trained / 1e6, cfg.MODEL.DEVICE,
        )  # fmt: skip
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """See :func:`sed_d2.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        """Detectron2's loader with the training mapper.

        Raises:
            ValueError: there is no data set, or its ignored value or number of classes is not
                the config's.
        """
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty: name a registered data set")
        name = cfg.DATASETS.TRAIN[0]
        dataset_vocabulary(name, cfg.MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON)
        ignore_label = MetadataCatalog.get(name).ignore_label
        if ignore_label != cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE} is not "
                f"the ignored value of data set '{name}': set it to {ignore_label}"
            )
        return build_detection_train_loader(cfg, mapper=SemSegTrainMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Detectron2's loader with the mapper that also reads the labels."""
        return build_detection_test_loader(
            cfg, dataset_name, mapper=SemSegTestMapper(cfg, dataset_name)
        )

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        """The evaluator that the data set's metadata asks for."""
        return build_evaluator(dataset_name, f"{cfg.OUTPUT_DIR}/inference/{dataset_name}")

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate each of ``cfg.DATASETS.TEST`` with its own vocabulary, and tell all in a table.

        The table is logged and written to ``OUTPUT_DIR/inference`` as ``results.json`` and
        ``results.md``.

        Returns:
            As DefaultTrainer: results by data set, or those of the only data set.
        """
        results, rows = OrderedDict(), []
        for i, name in enumerate(cfg.DATASETS.TEST):
            one = cfg.clone()
            one.defrost()
            one.DATASETS.TEST = (name,)
            vocabulary = dataset_vocabulary(name, cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON)
            inference = LabelInference(model)
            with use_vocabulary(model, vocabulary):
                results[name] = super().test(
                    one, inference, None if evaluators is None else [evaluators[i]]
                )
            images, seconds = map(sum, zip(*comm.all_gather(inference.work), strict=True))
            if comm.is_main_process() and "sem_seg" in results[name]:
                rows.append(
                    make_row(
                        name,
                        results[name]["sem_seg"],
                        images,
                        1000 * seconds / images,
                        paper_miou(
                            name,
                            cfg.MODEL.CLIP.NAME,
                            cfg.TEST.TOPK if cfg.TEST.FAST_INFERENCE else None,
                        ),
                    )
                )
        if rows:
            write_results(rows, f"{cfg.OUTPUT_DIR}/inference")
            logger.info("Results, also in %s/inference:\n%s", cfg.OUTPUT_DIR, render(rows))
        return next(iter(results.values())) if len(results) == 1 else results


class LabelInference(nn.Module):
    """Asks a model, possibly a distributed one, for labels instead of scores, and times it.

    Attributes:
        work: the images done and the seconds they took in this process.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training
        self.work = (0, 0.0)

    def forward(self, batched_inputs):
        """A list of {"labels": (height, width)}, see :class:`sed_d2.modeling.SED`."""
        start = time.perf_counter()
        output = self.model(batched_inputs, labels_only=True)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        images, seconds = self.work
        self.work = images + len(batched_inputs), seconds + time.perf_counter() - start
        return output


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for the processes there are; alone it stays as it is."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


@contextlib.contextmanager
def use_vocabulary(model: nn.Module, vocabulary: Vocabulary) -> Iterator[None]:
    """Let a model answer for other classes, embedded at once, for a while."""
    model = getattr(model, "module", model)
    before = model.vocabulary
    model.set_vocabulary(vocabulary)
    try:
        model.text_embeddings()
        yield
    finally:
        model.set_vocabulary(before)


def dataset_vocabulary(dataset_name: str, class_file: str = "") -> Vocabulary:
    """The names to ask for on a data set: those of ``class_file``, else the data set's own.

    Raises:
        ValueError: there is no such data set, or the file has another number of classes.
    """
    if dataset_name not in DatasetCatalog.list():
        raise ValueError(
            f"there is no data set '{dataset_name}': DATASETS.TRAIN and TEST name registered ones, "
            f"which are {', '.join(name for name in DatasetCatalog.list() if 'sem_seg' in name)}"
        )
    own = Vocabulary.of_dataset(dataset_name)
    if not class_file:
        return own
    vocabulary = Vocabulary.from_file(class_file)
    if len(vocabulary) != len(own):
        raise ValueError(
            f"class file '{class_file}' has {len(vocabulary)} classes but data set "
            f"'{dataset_name}' has {len(own)}: list one name per class, in the order of the labels"
        )
    return vocabulary
