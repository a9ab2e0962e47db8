"""Self-contained HTML pages: of a run, of several runs side by side, and of a comparison. No script, no network."""
