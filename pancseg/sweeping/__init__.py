"""Many trainings by one command: jobs that can be resumed, searches, and the table of a sweep."""
