"""A network of a few weights with two heads, and a job that trains it on the made-up tree."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from petface.data.images import Preprocessing
from petface.data.loading import FileImages, Samples
from petface.data.sources.petface import scan
from petface.devices import Precision
from petface.models.network import Network
from petface.training.epoch import Progress, train_epoch
from petface.training.evaluate import Job
from petface.training.recipe import heads_loss
from petface.training.runs import FailureLog, RunFolder
from petface.training.schedule import EarlyStopping

CPU, SIZE, HEADS = torch.device("cpu"), 12, ("one", "two")
SHOWN = {"one": np.array([3, 1, 6]), "two": np.array([1, 1])}


class Small(nn.Module):
    """Two heads on a convolution: enough to have every kind of state.

    With `is_plain` nothing in it looks at other images of the batch, or draws.
    """

    def __init__(self, is_plain=False):
        super().__init__()
        norm = nn.Identity() if is_plain else nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), norm, nn.ReLU())
        self.drop = nn.Dropout(0.0 if is_plain else 0.5)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        features = self.drop(self.body(x).mean(dim=(2, 3)))
        return self.one(features), self.two(features)


def make_job(images, folder, model, batch_size=8, gamma=0.0, weighted=False):
    alphas = dict.fromkeys(HEADS, 1.0) if weighted else None
    catalog, rule = scan(images).catalog, Preprocessing(SIZE)
    class_weights, loss = heads_loss(SHOWN, dict.fromkeys(HEADS, gamma), CPU, weight_alphas=alphas)
    return Job(
        network=Network(model, rule, CPU, Precision(None)),
        num_classes={"one": 3, "two": 2},
        loss=loss,
        class_weights=class_weights,
        source=FileImages(catalog, rule),
        batch_size=batch_size,
        num_workers=0,
        failures=FailureLog(RunFolder(folder), catalog, len(catalog), 0.5),
    )


def samples_of(images, one, two):
    """Samples with labels of the two heads; every fourth image is minority."""
    images = np.asarray(images, np.int64)
    return Samples(images, {"one": np.asarray(one), "two": np.asarray(two)}, images % 4 == 0)


def progress_of(job, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(job.network.model.parameters(), lr=0.01, fused=True)
    return Progress(optimizer, job.network.grad_scaler(), EarlyStopping(3, mode="min"))


def train(job, progress, samples, order, regimes, rate=0.01, seed=0, **more):
    """`train_epoch` at one learning rate."""
    return train_epoch(
        job, progress, samples, order, regimes, seed=seed, rate=lambda _: rate, **more
    )


def state_of(job):
    return {k: v.clone() for k, v in job.network.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one.keys() | other.keys())
