"""A package, so that its server ends with the last of its tests and costs the others nothing."""
