"""The whole course on one data set by one command: every method trained and measured, and a page about it."""
