"""An actor that learns through a critic: both read the same states."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
states, actions = torch.randn(2000, 3), torch.rand(2000, 2) * 2 - 1
rewards = -(actions - torch.tanh(states[:, :2])).square().sum(1, keepdim=True)
actor = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 2), nn.Tanh())
critic = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 1))
of_actor, of_critic = torch.optim.Adam(actor.parameters(), 1e-3), torch.optim.Adam(critic.parameters(), 1e-3)
for _ in range(120):
    i = torch.randint(0, 2000, (128,))
    loss = F.mse_loss(critic(torch.cat([states[i], actions[i]], 1)), rewards[i])
    of_critic.zero_grad()
    loss.backward()
    of_critic.step()
    loss = -critic(torch.cat([states[i], actor(states[i])], 1)).mean()
    of_actor.zero_grad()
    loss.backward()
    of_actor.step()
