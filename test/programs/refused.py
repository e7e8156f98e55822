"""Programs that must be refused with a reason that names the operation, before anything is computed."""

import torch
import torch.nn as nn
from parts import Ends, WIDTH, shifted_loss


class fourier(Ends):
    expect = "fft"

    def body(self, x):
        return x + torch.fft.rfft(x, dim=1, n=16).abs().mean(1, keepdim=True)


class data_dependent(Ends):
    expect = "nonzero"

    def forward(self, tokens, labels):
        x = self.logits_of(self.embed(tokens))
        kept = torch.nonzero(tokens.flatten() > 5)[:, 0]
        return x.flatten(0, 1)[kept].square().mean() + 0 * labels.sum()

    def logits_of(self, x):
        return self.head(self.norm(x))


class solve(Ends):
    expect = "linalg"

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(WIDTH))

    def body(self, x):
        return x @ torch.linalg.inv(self.matrix)


class running_statistics(Ends):
    """A batch norm that keeps running means: state that a step would have to write back."""

    expect = "batch_norm"

    def __init__(self):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def body(self, x):
        return x + self.batch_norm(x.transpose(1, 2)).transpose(1, 2)


class recurrent(Ends):
    expect = "lstm"

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def body(self, x):
        return self.lstm(x)[0]


REFUSED = [fourier, data_dependent, solve, running_statistics, recurrent]
