"""What is typed, difformer VERB, each in a folder of its name, with its recipe."""
