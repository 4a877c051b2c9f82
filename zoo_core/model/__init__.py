"""The learner: built from a plan, its objective, and what it does to raw examples."""
