"""An actor and a critic in one net, whose forward gives a distribution; what is lost grows with what is earned."""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(0)


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.choice, self.worth = nn.Linear(3, 32), nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, state):
        h = torch.tanh(self.body(state))
        return Categorical(logits=self.choice(h)), self.worth(h).squeeze(-1)


policy = Policy()
optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
for step in range(150):
    states = torch.randn(64, 3)
    chances, worth = policy(states)
    actions = chances.sample()
    earned = (actions == (states[:, 0] > 0)).float() * (1 + step / 10)
    gain = earned - worth
    loss = -(chances.log_prob(actions) * gain.detach()).mean() + 0.5 * gain.square().mean()
    loss = loss - 0.01 * chances.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
