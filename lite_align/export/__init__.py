"""Export: a finished run as a folder that other programs load, compared with the run before it is handed over."""
