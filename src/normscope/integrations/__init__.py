"""The tracker inside other people's loops and loggers: Lightning, Hugging Face's ``Trainer``, TensorBoard.

Each file imports its library when it is imported itself, and says what to install where that is missing.
"""
