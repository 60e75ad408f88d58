"""The paper's tasks: entities, relations, questions; README.md has the reading order."""
