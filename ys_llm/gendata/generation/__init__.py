"""From a plan to accepted records, journalled."""
