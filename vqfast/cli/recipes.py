"""Trainings as published: the options of a command, by the name of the source."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]  # the name of an option without its dashes -> its value, as in a TOML file

RECIPES: dict[str, dict[str, Options]] = {
    "train": {
        # Keras' example "Vector-Quantized Variational Autoencoders"; Adam() there has the rate 1e-3
        "keras": {
            "model": "keras",
            "epochs": 30.0,
            "batch-size": 128,
            "lr": 1e-3,
            "schedule": "constant",
        },
        # J. Ruseckas' notebooks "vq-vae" and "Hierarchical VQ-VAE"
        "ruseckas": {
            "model": "ruseckas",
            "size": 128,
            "flip": True,
            "epochs": 20.0,
            "batch-size": 128,
            "optimizer": "adamw",
            "weight-decay": 1e-2,
            "lr": 1e-2,
            "schedule": "onecycle",
        },
        "ruseckas-hierarchical": {
            "model": "ruseckas-hierarchical",
            "size": 128,
            "flip": True,
            "epochs": 10.0,
            "batch-size": 64,
            "optimizer": "adamw",
            "weight-decay": 1e-2,
            "lr": 1e-2,
            "schedule": "onecycle",
        },
        # van den Oord et al. 2017, arXiv 1711.00937, section 4.1
        "paper": {
            "model": "paper",
            "steps": 250_000,
            "batch-size": 128,
            "lr": 2e-4,
            "schedule": "constant",
        },
        # Razavi et al. 2019, arXiv 1906.00446; the rate is that of its authors' example of a VQ-VAE
        "vqvae2": {
            "model": "vqvae2",
            "size": 256,
            "batch-size": 128,
            "lr": 3e-4,
            "schedule": "constant",
        },
    },
    "train-prior": {
        "keras": {
            "prior": "residual",
            "epochs": 30.0,
            "batch-size": 128,
            "lr": 3e-4,
            "schedule": "constant",
            "no-labels": True,
        },
    },
}
