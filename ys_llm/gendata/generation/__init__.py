"""From a plan to journalled answers and accepted records."""
