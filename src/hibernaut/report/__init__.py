"""Results for people: text and tables."""
