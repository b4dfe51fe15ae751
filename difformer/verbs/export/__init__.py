"""The verb export: a classifier together with its backbone."""
