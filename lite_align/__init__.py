"""lite-align: DPO-first fine-tuning of language models on one GPU."""

__version__ = "0.1.0"
