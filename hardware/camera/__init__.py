"""Cameras: where frames come from, what is made of them, and how new they are."""
