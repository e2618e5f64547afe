"""Packaging of sed_d2; the settings of its tools are in pyproject.toml."""

from setuptools import find_packages, setup

#: The oldest and the newest supported Python 3 that PyPI's torch has wheels for. The Makefile reads
#: this line; no other place names them.
OLDEST, NEWEST = 10, 15

setup(
    name="sed_d2",
    version="0.1.0",
    description="SED, open-vocabulary semantic segmentation, as a Detectron2 project",
    license="Apache-2.0",
    python_requires=f">=3.{OLDEST},<3.{NEWEST + 1}",
    classifiers=[
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(OLDEST, NEWEST + 1)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    # The configurations live beside the package; an installed wheel has them inside it.
    packages=[*find_packages(include=["sed_d2", "sed_d2.*"]), "sed_d2.configs"],
    package_dir={"sed_d2.configs": "configs"},
    package_data={
        "sed_d2": ["data/vocabularies/*.json", "shapes/*.json", "shapes/weights/*"],
        "sed_d2.configs": ["*.yaml"],
    },
    # Detectron2 is not on PyPI; tools/install_detectron2.py installs it. torch and torchvision have
    # no upper bound, so that pip finds a matching pair. open_clip and timm have one, because
    # sed_d2/modeling/clip uses internals of theirs.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.24",
        "Pillow>=10.1",
        "open_clip_torch>=3.0,<4",
        "timm>=1.0.15,<2",
        # Detectron2 needs cv2 for colours and drawing. The headless build runs without libGL, which
        # servers and containers lack.
        "opencv-python-headless>=4.8",
        "PyYAML>=6.0",
        "pycocotools>=2.0.6",
        "scipy>=1.11",
        "tabulate",
        "tqdm>=4.65",
    ],
    extras_require={
        # The checks of ruff and mypy change between minor versions.
        "dev": ["mypy>=2.4,<2.5", "pytest>=8.0", "ruff>=0.17,<0.18"],
    },
)
