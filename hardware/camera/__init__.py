"""Cameras: sources of frames, their optics, and the age of each frame."""
