"""People say which of two answers is better: what is asked, in which order, where votes go; a page and a terminal."""
