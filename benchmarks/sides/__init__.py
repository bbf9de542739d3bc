"""The sides that run in this project's own environment, each a program of its own."""
