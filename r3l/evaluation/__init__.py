"""How good a policy is: evaluation, trials by eye, play, export, film and the report."""
