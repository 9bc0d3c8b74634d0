# house price style regression, quick experiment
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)

n = 2000
features = torch.randn(n, 8)
price = (
    2.0 * features[:, 0]
    - 1.5 * features[:, 1]
    + features[:, 2] * features[:, 3]
    + 0.5 * torch.sin(3 * features[:, 4])
    + 0.1 * torch.randn(n)
)
price = (price - price.mean()) / price.std()

train_dl = DataLoader(TensorDataset(features[:1600], price[:1600]), batch_size=64, shuffle=True)
test_x, test_y = features[1600:], price[1600:]

net = nn.Sequential(
    nn.Linear(8, 64),
    nn.ReLU(),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 1),
)
opt = torch.optim.Adam(net.parameters(), lr=1e-3)

for epoch in range(30):
    net.train()
    running = 0.0
    for xb, yb in train_dl:
        pred = net(xb)
        loss = ((pred - yb) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        running += loss.item()
    if epoch % 3 == 2:
        print(f"epoch {epoch + 1}: train mse {running / len(train_dl):.4f}")

net.eval()
with torch.no_grad():
    out = net(test_x).squeeze(1)
    r2 = 1 - ((out - test_y) ** 2).sum() / ((test_y - test_y.mean()) ** 2).sum()
print(f"test R2 {r2:.3f}, std of predictions {out.std():.3f}, std of targets {test_y.std():.3f}")
