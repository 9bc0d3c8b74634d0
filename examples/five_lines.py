"""The README's five lines: diagnose your own model on one batch of your own data."""

import torch

import normscope as ns

model = torch.nn.Sequential(*[m for _ in range(32) for m in (torch.nn.Linear(64, 64), torch.nn.ReLU())])
inputs = torch.rand(128, 64)

found = ns.diagnose(model, inputs)
print(found)  # the verdict, and each finding with its evidence and what to do
for finding in found.findings:
    print(finding.code, finding.severity, finding.name, finding.cure)
