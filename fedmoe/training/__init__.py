"""Local training and evaluation, written once for many clients at a time."""
