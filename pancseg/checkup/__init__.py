"""The machine, looked at: each room tries one thing for real and says what it found."""
