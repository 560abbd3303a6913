"""PostgreSQL: the truth, and the only module that speaks SQL."""
