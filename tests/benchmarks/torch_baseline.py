"""The network `baseline` in PyTorch, and one epoch of it as such loops are usually written."""

import io

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Slices(Dataset):
    """Encoded slices, each decoded when it is asked for."""

    def __init__(self, blobs, labels):
        self.blobs, self.labels = blobs, labels

    def __len__(self):
        return len(self.blobs)

    def __getitem__(self, i):
        image = np.array(Image.open(io.BytesIO(self.blobs[i])).convert("L"), np.float32) / 255
        return torch.from_numpy(image)[None], int(self.labels[i])


def baseline(keras_model=None):
    """Build the network; with the weights of `keras_model` where that is given."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(32, 1e-3)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 32 * 32, 128), nn.ReLU(), nn.Linear(128, 4)),
    )
    if keras_model is not None:
        parts = [model[i] for i in (0, 3, 4, 8, 10)]
        layers = [layer for layer in keras_model.layers if layer.get_weights()]
        with torch.no_grad():
            for part, layer in zip(parts, layers, strict=True):
                kernel, bias, *moments = layer.get_weights()
                kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
                if len(kernel) == 128:  # Flattened with the channels first here, last there.
                    kernel = kernel.reshape(128, 32, 32, 64).transpose(0, 3, 1, 2).reshape(128, -1)
                part.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
                part.bias.copy_(torch.from_numpy(bias))
                for buffer, moment in zip(("running_mean", "running_var"), moments, strict=False):
                    getattr(part, buffer).copy_(torch.from_numpy(moment))
    return model


def trainer(blobs, labels, train, validation):
    """Return a function that trains one epoch on rows `train` and measures on `validation`."""
    model, loss_of = baseline(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters())
    parts = [Slices([blobs[i] for i in rows], labels[rows]) for rows in (train, validation)]
    batches, held_out = DataLoader(parts[0], 32, shuffle=True), DataLoader(parts[1], 32)

    def epoch():
        model.train()
        total = 0.0
        for images, targets in batches:
            optimizer.zero_grad()
            loss = loss_of(model(images), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in held_out)
        return total / len(batches), right / len(validation)

    return epoch
