"""Sets of equally sized images: scikit-learn's digits, image folders, NumPy files and IDX (MNIST) files."""

from vqfast.data.disk import Unreadable
from vqfast.data.images import Images, load_images

__all__ = ["Images", "Unreadable", "load_images"]
