"""`scale`: plan, configure and run large-batch Transformer training on DeepSpeed."""

__version__ = "0.1.0"
