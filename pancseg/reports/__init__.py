"""Reports for people: tables and pages."""
