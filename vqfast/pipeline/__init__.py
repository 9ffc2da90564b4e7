"""From data to new data in five steps: train a VQ-VAE, encode, train a prior, sample, decode.

Each step notes its settings in the run's folder, does only what isn't done yet, and can be killed at any
moment: begun again with the same settings, it ends with the same bits.
"""

from vqfast.pipeline.checkpoint import load_model, save_model
from vqfast.pipeline.codes import CodeGrids, open_codes, stage_codes
from vqfast.pipeline.coding import decode, encode
from vqfast.pipeline.completion import Completion
from vqfast.pipeline.conversion import convert
from vqfast.pipeline.measures import bits_per_code, bits_per_dim, measure_reconstruction
from vqfast.pipeline.options import PriorTraining, Training, VideoTraining
from vqfast.pipeline.pages import report
from vqfast.pipeline.parts import modality_of, reopen_parts
from vqfast.pipeline.phone_table import PhoneTable, phone_table
from vqfast.pipeline.prior_training import train_priors
from vqfast.pipeline.priors import load_priors
from vqfast.pipeline.ranks import Ranks, joined
from vqfast.pipeline.rejection import Rejection, train_classifier
from vqfast.pipeline.run import Run
from vqfast.pipeline.sampling import SampleRequest, num_rejected, sample
from vqfast.pipeline.second_stage import train_second_stage
from vqfast.pipeline.speech_measures import measure_speech
from vqfast.pipeline.speech_training import train_speech
from vqfast.pipeline.video_continuation import Continuation
from vqfast.pipeline.vqvae_training import train_vqvae

__all__ = [
    "CodeGrids",
    "Completion",
    "Continuation",
    "PhoneTable",
    "PriorTraining",
    "Ranks",
    "Rejection",
    "Run",
    "SampleRequest",
    "Training",
    "VideoTraining",
    "bits_per_code",
    "bits_per_dim",
    "convert",
    "decode",
    "encode",
    "joined",
    "load_model",
    "load_priors",
    "measure_reconstruction",
    "measure_speech",
    "modality_of",
    "num_rejected",
    "open_codes",
    "phone_table",
    "reopen_parts",
    "report",
    "sample",
    "save_model",
    "stage_codes",
    "train_classifier",
    "train_priors",
    "train_second_stage",
    "train_speech",
    "train_vqvae",
]
