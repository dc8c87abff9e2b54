"""Replicas of one training that come and go; see docs/elastic.md."""
