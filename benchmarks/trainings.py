"""What the rules over the steps say of small trainings, healthy and broken, with and without the losses logged.

python benchmarks/trainings.py [--seeds 3] [--steps 200] [--every 4]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from trainings import BROKEN, HEALTHY, followed  # type: ignore[import-not-found]


def said(review) -> str:  # type: ignore[no-untyped-def]
    return ", ".join(f"{f.code} {f.severity} @{f.step}" + (f" L{f.layer}" if f.layer is not None else "")
                     for f in review.findings) or "-"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=4)
    args = parser.parse_args()
    alarms = missed = total = broken = 0
    for told in (True, False):
        print(f"## losses {'logged' if told else 'not logged'}")
        for name, make in HEALTHY.items():
            for seed in range(args.seeds):
                found = followed(make, seed, args.steps, args.every, told)
                bad = any(f.severity != "info" for f in found.findings)
                total, alarms = total + 1, alarms + bad
                if found.findings or not seed:
                    print("FALSE" if bad else "ok   ", name, seed, said(found))
        for name, (make, codes) in BROKEN.items():
            for seed in range(args.seeds):
                found = followed(make, seed, args.steps, args.every, told)
                hit = any(f.code in codes and f.severity != "info" for f in found.findings)
                broken, missed = broken + 1, missed + (not hit)
                if not hit or not seed:
                    print("ok   " if hit else "MISS ", name, seed, said(found))
    print(f"{alarms} of {total} healthy trainings with an alarm, {missed} of {broken} broken ones missed")


if __name__ == "__main__":
    main()
