"""Sequences of unlike lengths, padded with token 0, which the loss ignores."""

import torch
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(14, 24, padding_idx=0), nn.Embedding(14, 24, padding_idx=0)
        self.encoder, self.decoder = nn.GRU(24, 64, batch_first=True), nn.GRU(24, 64, batch_first=True)
        self.head = nn.Linear(64, 14)

    def forward(self, source, lengths, target):
        packed = nn.utils.rnn.pack_padded_sequence(self.source(source), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.decoder(self.target(target), self.encoder(packed)[1])[0])


def batch(n=32):
    lengths = torch.randint(2, 7, (n,))
    source, target = torch.zeros(n, 6, dtype=torch.long), torch.zeros(n, 8, dtype=torch.long)
    target[:, 0] = 1
    for i, k in enumerate(lengths.tolist()):
        source[i, :k] = torch.randint(3, 14, (k,))
        target[i, 1 : k + 1] = source[i, :k].flip(0)
        target[i, k + 1] = 2
    return source, lengths, target


model = Model()
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
criterion = nn.CrossEntropyLoss(ignore_index=0)
for _ in range(150):
    source, lengths, target = batch()
    out = model(source, lengths, target[:, :-1])
    loss = criterion(out.reshape(-1, 14), target[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
