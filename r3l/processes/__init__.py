"""The processes of an unattended run: actor, learner, their supervisor, and what these share."""
