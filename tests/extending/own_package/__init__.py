"""A package of somebody who uses difformer: one plug-in of each kind."""
