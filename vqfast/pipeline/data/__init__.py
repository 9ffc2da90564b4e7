"""Sets of equally sized images: scikit-learn's digits, image folders, NumPy files and IDX (MNIST) files."""

from vqfast.pipeline.data.disk import Unreadable
from vqfast.pipeline.data.images import Images, load_images

__all__ = ["Images", "Unreadable", "load_images"]
