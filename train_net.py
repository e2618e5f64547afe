#!/usr/bin/env python
"""Train or evaluate a model; see ``--help``."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from sed_d2.cli.errors import one_sentence

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# The functions import torch and Detectron2, so that --help needs neither.

EXAMPLES = """\
examples:
  python train_net.py --config-file convnextB_768.yaml --num-gpus 4
  python train_net.py --config-file convnextB_768.yaml --num-gpus 4 --resume
  python train_net.py --config-file convnextB_768.yaml --eval-only MODEL.WEIGHTS sed_base.pth
  torchrun --nproc-per-node 4 train_net.py --config-file convnextB_768.yaml

on two machines:
  (0) python train_net.py --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT ...
  (1) python train_net.py --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT ...
"""


def argument_parser() -> argparse.ArgumentParser:
    """Return a parser with the options of Detectron2's ``default_argument_parser``."""
    parser = argparse.ArgumentParser(
        description="Train a model, or evaluate it with --eval-only.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="a YAML file, or the name of a shipped config",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and exit")
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine, one per GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://HOST:PORT of machine 0; 'auto' takes a free port and works on one machine",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and their values, such as SOLVER.BASE_LR 0.001; see docs/config.md",
    )
    return parser


def get_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the config of the command line.

    Raises:
        ValueError: --eval-only with a pooling size that only training reads.
    """
    from sed_d2 import get_sed_cfg

    cfg = get_sed_cfg(args.config_file, args.opts)
    if args.eval_only:
        check_pooling(cfg, args.opts)
    return cfg


def check_pooling(cfg: CfgNode, opts: list[str]) -> None:
    """Check that an evaluation uses the pooling size that the command line names.

    The released implementation has one key for both; there an evaluation is told
    MODEL.SEM_SEG_HEAD.POOLING_SIZES [1,1], which is the default of TEST.POOLING_SIZES.
    """
    train, test = "MODEL.SEM_SEG_HEAD.POOLING_SIZES", "TEST.POOLING_SIZES"
    if train not in opts[::2] or test in opts[::2]:
        return
    given, used = list(cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZES), list(cfg.TEST.POOLING_SIZES)
    if given != used:
        raise ValueError(
            f"{train} {given} is for training and evaluation would use {test} {used}: "
            f'pass {test} "{given}" instead'
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the frozen config, with logging, seed and the user's data sets set up."""
    cfg = get_cfg(args)  # Its import of sed_d2 comes first and mutes a warning of Detectron2's.
    cfg.freeze()

    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from sed_d2.config import find_config, warn_of_unread_keys
    from sed_d2.data.custom import register_custom

    register_custom(cfg.DATASETS.CUSTOM)
    if args.config_file:  # Detectron2 logs the file's content.
        args.config_file = find_config(args.config_file)
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="sed_d2", abbrev_name="sed")
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:  # Tracebacks go to the log file only.
            handler.setLevel(logging.INFO)
    if comm.is_main_process():
        warn_of_unread_keys(args.config_file, args.opts)
    return cfg


@one_sentence()
def main(args: argparse.Namespace) -> Any:
    """Train or evaluate in this process, and return the results of the evaluation."""
    cfg = setup(args)

    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from sed_d2.checkpoint import SEDCheckpointer
    from sed_d2.device import keep_freed_memory
    from sed_d2.engine.trainer import Trainer

    keep_freed_memory(cfg.MODEL.DEVICE)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    if not cfg.MODEL.WEIGHTS and not args.resume:
        logging.getLogger("sed_d2").warning(
            "The weights are random: pass MODEL.WEIGHTS to load a checkpoint"
        )
    model = Trainer.build_model(cfg)
    SEDCheckpointer(model, cfg.OUTPUT_DIR, strict=cfg.MODEL.WEIGHTS_STRICT).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=args.resume
    )
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


@one_sentence()
def run(args: argparse.Namespace) -> None:
    """Run :func:`main` in the processes that the command line asks for."""
    from sed_d2.engine.launch import launch

    launch(
        main,
        args.num_gpus,
        device=get_cfg(args).MODEL.DEVICE,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    run(argument_parser().parse_args())
