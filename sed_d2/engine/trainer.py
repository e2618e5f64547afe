"""Trainer: Detectron2's DefaultTrainer with this project's data, optimizer and evaluation."""

import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
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
from ..data.custom import register_custom
from ..evaluation import build_evaluator
from ..registration import register
from .evaluation import dataset_vocabulary, evaluate_all
from .solver import build_optimizer

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains a segmenter on ``cfg.DATASETS.TRAIN`` and evaluates it on ``cfg.DATASETS.TEST``.

    The constructor replaces DefaultTrainer's, which has no option for the two differences: models
    on CPUs are distributed too, and checkpoints are read strictly.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        register()
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

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, with the optimizer, which Detectron2 0.6 omits."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model, without Detectron2's log of every layer."""
        model = build_model(cfg)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        logger.info(
            "%s on %s with %.1f M parameters, of which %.1f M are trained, on %s",
            cfg.MODEL.SEM_SEG_HEAD.NAME,
            cfg.MODEL.CLIP.NAME,
            total / 1e6,
            trained / 1e6,
            cfg.MODEL.DEVICE,
        )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer, see :func:`sed_d2.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build Detectron2's loader with the training mapper.

        Raises:
            ValueError: there is no data set, or its ignored value or number of classes is not
                the config's.
        """
        register_custom(cfg.DATASETS.CUSTOM)
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
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build Detectron2's loader with the mapper that also reads the labels."""
        register_custom(cfg.DATASETS.CUSTOM)
        return build_detection_test_loader(
            cfg, dataset_name, mapper=SemSegTestMapper(cfg, dataset_name)
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the evaluator of the data set's metadata."""
        return build_evaluator(dataset_name, f"{cfg.OUTPUT_DIR}/inference/{dataset_name}")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[Any] | None = None
    ) -> dict[str, Any]:
        """Evaluate each of ``cfg.DATASETS.TEST``, see :func:`evaluate_all`."""
        register()
        register_custom(cfg.DATASETS.CUSTOM)
        super_test = super().test

        def evaluate(single: CfgNode, inference: nn.Module, i: int) -> dict[str, Any]:
            return super_test(single, inference, evaluators and [evaluators[i]])

        return evaluate_all(cfg, model, evaluate)


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for several processes; in a single process it stays as it is."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
