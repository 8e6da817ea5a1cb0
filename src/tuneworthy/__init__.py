"""Should you fine-tune? An answer by measurement."""

__version__ = "0.1.0"
