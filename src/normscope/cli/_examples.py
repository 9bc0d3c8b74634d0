"""What stands under ``--help`` of each command as it would be typed; a test runs each line."""

from __future__ import annotations

EXAMPLES = {
    "cure": (
        "normscope cure net.py:make --data net.py:batch --how auto",
        "normscope cure mlp:depth=32 --how orthogonal",
    ),
    "diagnose": (
        "normscope diagnose net.py:make --data net.py:batch --html report.html",
        "normscope diagnose mlp:depth=32 --fail-on NS101  # exit code 1",
    ),
    "explain": ("normscope explain NS101",),
    "list": ("normscope list cures",),
    "overfit": ("normscope overfit net.py:make --data net.py:batch --fail",),
    "predict": ("normscope predict mlp:depth=32,width=256,norm=batch --simulate 5",),
    "race": ("normscope race mlp:depth=20 --cures none,orthogonal,bn --lr search --html race.html",),
    "rates": ("normscope rates net.py:make --data net.py:batch --range",),
    "report": ("normscope report logs/first --html run.html",),
    "selfcheck": ("normscope selfcheck",),
    "sharpness": ("normscope sharpness net.py:make --data net.py:batch --lr 0.001",),
    "sweep": ("normscope sweep --task simulate --depth 1:64:log2 --norm none,batch --store runs",),
    "transfer": ("normscope transfer net.py:make --data net.py:batch --optimizer adam --to 128x8",),
    "verify": ("normscope verify daneshmand2021 --dry-run", "normscope verify nachum2024/two-clusters"),
    "why": ("normscope why train.py --lr 0.1", "normscope why --html why.html -m package.train --epochs 1"),
}


def under(command: str, epilog: str | None) -> str | None:
    """What stands under the help of a command: what it says itself, and the examples, a paragraph each."""
    if not (lines := EXAMPLES.get(command)):
        return epilog
    return "\n\n".join([*([epilog] if epilog else []), "Examples:", *lines])
