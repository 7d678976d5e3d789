"""Storms: what the commands leave behind when they are killed, starved, misled or lied to."""
