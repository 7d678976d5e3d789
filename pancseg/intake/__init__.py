"""From files to a prepared folder: sources, matching of labels, checks, conversion, merge."""
