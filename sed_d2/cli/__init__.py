"""Code that the commands share. It imports neither torch nor Detectron2."""
