#!/usr/bin/env python
"""Train or evaluate SED; see ``--help``."""

import logging

import sed_d2

# isort: split
# sed_d2 comes first, because it mutes a warning that Detectron2's import gives.
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from sed_d2.checkpoint import SEDCheckpointer
from sed_d2.cli.errors import one_sentence
from sed_d2.config import find_config
from sed_d2.device import keep_freed_memory
from sed_d2.engine.launch import launch
from sed_d2.engine.trainer import Trainer


def setup(args):
    """The frozen config of the command line, with Detectron2's logging and seeding set up."""
    cfg = sed_d2.get_sed_cfg(args.config_file, args.opts)
    cfg.freeze()
    if args.config_file:  # Detectron2 logs the file's content
        args.config_file = find_config(args.config_file)
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="sed_d2", abbrev_name="sed")
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:  # tracebacks go to the log file only
            handler.setLevel(logging.INFO)
    return cfg


@one_sentence()
def main(args):
    """Train or evaluate in this process."""
    cfg = setup(args)
    keep_freed_memory(cfg.MODEL.DEVICE)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    if not cfg.MODEL.WEIGHTS and not args.resume:
        logging.getLogger("sed_d2").warning(
            "The weights are random: name a checkpoint by MODEL.WEIGHTS"
        )
    model = Trainer.build_model(cfg)
    SEDCheckpointer(model, cfg.OUTPUT_DIR, strict=cfg.MODEL.WEIGHTS_STRICT).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=args.resume
    )
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    with one_sentence():
        launch(
            main,
            args.num_gpus,
            device=sed_d2.get_sed_cfg(args.config_file, args.opts).MODEL.DEVICE,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
