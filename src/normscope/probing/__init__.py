"""Every layer of a model measured: on one batch, or while the user's own loop trains."""
