"""Draw the picture of the README: the embedded model among 847 words, image and labels and legend.

python tools/readme_picture.py
"""

from pathlib import Path

from sed_d2 import OpenVocabPredictor
from sed_d2.data.files import read_image
from sed_d2.shapes import vocabulary_of_size
from sed_d2.shapes.embedded import get_embedded_cfg
from sed_d2.visualization import draw_panels, save_picture

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "demo" / "images" / "unseen_combinations.jpg"
PICTURE = ROOT / "docs" / "readme.jpg"
#: The 92 names of the world and 755 everyday things that the image does not show.
NUM_WORDS = 847
#: Twice the side of the image, so that the text is sharp at the width of a page.
SIDE = 512


def main() -> None:
    """Ask for all words at once, with category early rejection."""
    predictor = OpenVocabPredictor(get_embedded_cfg(["TEST.FAST_INFERENCE", True]))
    image = read_image(IMAGE, "RGB")
    prediction = predictor(image, vocabulary_of_size(NUM_WORDS))
    save_picture(draw_panels(image, prediction, side=SIDE), PICTURE)


if __name__ == "__main__":
    main()
