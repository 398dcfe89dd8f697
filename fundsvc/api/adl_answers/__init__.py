"""Answers about ADL, by what they answer. Only the command line shows accounts; visibility decides which numbers are exact."""
