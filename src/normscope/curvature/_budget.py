"""What may be spent beside lambda_max, and what was left out for it."""

from __future__ import annotations

import time

#: Fewer probes, or Lanczos steps, than these say too little to be shown (chosen by us).
FEWEST_PROBES, FEWEST_STEPS = 4, 6


class Budget:
    """Seconds from now on, what a product takes, and what did not fit: ``skipped``, name to cost in words."""

    def __init__(self, seconds: float, product: float) -> None:
        self.end, self.product = time.perf_counter() + seconds, product
        self.skipped: dict[str, str] = {}

    def products(self) -> float:
        """How many products the time left is worth."""
        left = max(self.end - time.perf_counter(), 0.0)
        return left / self.product if self.product > 0 else float("inf")

    def affords(self, name: str, products: float) -> bool:
        """Whether ``products`` fit; if not, ``name`` is noted as left out."""
        if products <= self.products():
            return True
        self.skipped[name] = f"{products:.3g} products, about {products * self.product:.0f} s"
        return False

    def probes(self, name: str, wanted: int) -> int:
        """``wanted``, or as many as fit if they are enough to say something, else 0."""
        fewest = min(wanted, FEWEST_PROBES)
        fit = min(float(wanted), self.products())
        if fit >= fewest:
            return int(fit)
        return wanted if self.affords(name, wanted) else 0
