"""The learning benchmark: runs over tasks, variants and seeds, their records, and the page made of them."""
