"""Packaging of sed_d2; the settings of its tools are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="sed_d2",
    version="0.1.0",
    description="SED, open-vocabulary semantic segmentation, as a Detectron2 project",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The configurations live beside the package; an installed wheel has them inside it.
    packages=[*find_packages(include=["sed_d2", "sed_d2.*"]), "sed_d2.configs"],
    package_dir={"sed_d2.configs": "configs"},
    package_data={
        "sed_d2": ["data/vocabularies/*.json", "shapes/*.json", "shapes/weights/*"],
        "sed_d2.configs": ["*.yaml"],
    },
    # Detectron2 is missing on purpose: PyPI has none under its name, tools/install_detectron2.py
    # installs it. torch and torchvision have no upper bound, so that pip finds a matching pair.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.24",
        "Pillow>=10.1",
        "open_clip_torch>=3.0",
        "timm>=1.0.15",
        # Detectron2 needs cv2 for colours and drawing; unlike opencv-python, the headless build
        # needs no libGL, which servers and containers lack.
        "opencv-python-headless>=4.8",
        "PyYAML>=6.0",
        "pycocotools>=2.0.6",
        "scipy>=1.11",
        "tabulate",
        "tqdm>=4.65",
    ],
    extras_require={
        # ruff's formatting changes between minor versions.
        "dev": ["pytest>=8.0", "ruff>=0.17,<0.18"],
    },
)
