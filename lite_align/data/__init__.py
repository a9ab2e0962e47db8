"""Rows: read, recognised, checked, rendered and packed."""
