"""Programs that judge an answer by its prompt alone: one file for each group of kinds."""
