"""Commands that are killed at random moments, and that find the disk full."""
