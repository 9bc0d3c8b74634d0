"""The door: one training step of the user's, read once, and run without leaving a trace."""
