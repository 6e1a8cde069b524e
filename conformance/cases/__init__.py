"""The cases, one file per area. Each file makes a Group (one bootstrap, one start of each proxy) and adds cases to it."""
