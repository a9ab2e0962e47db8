"""The base model: loading, adapters and roles, packed attention, log-probs and generation."""
