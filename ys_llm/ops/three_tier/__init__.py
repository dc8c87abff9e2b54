"""The three-tier recurrence: `reference`, and its faster backends."""
