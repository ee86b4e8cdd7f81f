"""Accept tasks, perform one at a time, settle interrupted ones, and report."""
