"""Data of all kinds: reading, writing and showing it. ``protocol`` is what the pipeline relies on."""

from vqfast.data.audio import AUDIO, Recordings, load_audio
from vqfast.data.disk import Unreadable
from vqfast.data.images import IMAGES, Images, load_images
from vqfast.data.protocol import Dataset, Modality, Source
from vqfast.data.video import VIDEO, Clips, load_video

MODALITIES: dict[str, Modality] = {"images": IMAGES, "audio": AUDIO, "video": VIDEO}

__all__ = [
    "MODALITIES",
    "Clips",
    "Dataset",
    "Images",
    "Modality",
    "Recordings",
    "Source",
    "Unreadable",
    "load_audio",
    "load_images",
    "load_video",
]
